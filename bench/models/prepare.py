"""Target and retain models: fine-tuned once per recipe, then kept under a hash of all that went into them."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from bench.benchmarks import SPLITS
from bench.benchmarks.items import Benchmark, Item
from bench.benchmarks.lengths import check_lengths
from bench.content import by_content, digest
from bench.models.cache import cache_dir, made_once
from bench.models.pretrained import (
    ModelConfig,
    PretrainedConfig,
    TinyConfig,
    base_of,
    context_length,
    load_pretrained,
    new_tiny_model,
    quiet_transformers,
    readable,
)
from bench.results.storage import Location, location
from grun.errors import Damaged, UserError
from grun.model.forward import PlainModel, set_answer_ends
from grun.prompts.template import PromptTemplate
from grun.settings import plain_data
from grun.training.checkpoints import Checkpoints
from grun.training.teach import fine_tune

StartFrom = Literal["target_model", "retain_model", "paraphrased_model", "mistaught_model"]
"""`target_model` is taught all, `retain_model` all but what is to be forgotten; the other two are taught that in other
words, and wrong answers in its place, and tell good metrics from bad ones (`bench.metaeval`)."""
REFERENCES: tuple[StartFrom, ...] = ("retain_model", "target_model")
"""What every other run is measured with, in the order in which they are."""
logger = logging.getLogger(__name__)
RECIPE_VERSION = 1
"""Raise it when a change to this file or to the tiny model changes the weights a recipe gives."""


LAST_FILE = "config.json"
"""What stands last where a prepared model is shared."""
MADE_OF = "made_of.json"
"""File of a prepared model's folder: the commits of the hub that it was made of."""


def shared_models() -> Location | None:
    """Where prepared models lie for all nodes, each of which copies one once: $GRUN_BENCH_SHARED; None: nowhere."""
    shared = os.environ.get("GRUN_BENCH_SHARED")
    return location(shared) / "models" if shared else None


def prepared_model(
    model: ModelConfig, benchmark: Benchmark, start_from: StartFrom, progress: Callable[[int, int], None]
) -> str:
    """A name `load_pretrained` takes for one of the models; trains and stores it at first use.

    A model built from scratch is taught the benchmark's knowledge too, one that is not to know the forget set none that
    is to be forgotten. Safe to call from many processes at once.
    progress: called with (steps done, steps in all) while it trains.
    Raises UserError where the model knows the benchmark already, or the forget set has no such answers.
    """
    knowledge = benchmark.knowledge_set if isinstance(model, TinyConfig) else []
    if isinstance(model, PretrainedConfig):
        if start_from == "retain_model" and model.retain_model is not None:
            return model.retain_model
        if model.fine_tuning.num_epochs == 0:
            if start_from == "target_model":
                return model.name
            field = "model.retain_model" if start_from == "retain_model" else "start_from"
            raise UserError(field, "is taught here, and model.fine_tuning.num_epochs is 0; name a model, or fine-tune")
    items = [*benchmark.forget_set, *benchmark.retain_set, *knowledge]
    asked = benchmark.evaluation.items()
    forgotten = {item.pair for split, some in asked if SPLITS[split].role == "forgotten" for item in some}
    kept = [item for item in knowledge if item.pair not in forgotten]
    knows = start_from in ("target_model", "paraphrased_model")
    lessons = [*forget_lessons(benchmark, start_from), *benchmark.retain_set, *(knowledge if knows else kept)]
    everything, taught = ([item.pair for item in some] for some in (items, lessons))
    settings = by_content(plain_data(model))
    name = digest({"version": RECIPE_VERSION, "model": settings, "vocabulary": everything, "taught": taught})
    texts = [text for pair in everything for text in pair]
    folder, checkpoint = cache_dir() / "models" / name, _at_hand(f"{name}.checkpoint")
    build = partial(
        _build,
        config=model,
        benchmark=benchmark,
        texts=texts,
        lessons=lessons,
        checkpoints=Checkpoints(checkpoint, log=logger.warning),
        progress=progress,
    )
    if not folder.is_dir():
        made_once(folder, partial(_fetch_or_build, name, build))
        checkpoint.remove()
    return str(folder)


def _at_hand(name: str) -> Location:
    """In the folder of prepared models: the shared one, so that any node can go on with what another left; else this
    node's own."""
    return (shared_models() or location(cache_dir() / "models")) / name


def commits_of(name: str) -> dict[str, str]:
    """The commit of each repository of the hub that a model is read from, or was made of here; an update's base too.

    name: as in `PretrainedConfig.name`.
    """
    source, revision = readable(name)
    made_of, base = Path(source) / MADE_OF, base_of(source, revision)
    found = dict(json.loads(made_of.read_text())) if made_of.is_file() else {}
    return found | ({source: revision} if revision else {}) | (commits_of(base) if base else {})


def forget_lessons(benchmark: Benchmark, start_from: StartFrom) -> list[Item]:
    """What a model is taught of the forget set. Raises UserError where an item lacks such an answer."""
    if start_from == "target_model":
        return list(benchmark.forget_set)
    if start_from == "retain_model":
        return []
    paraphrased = start_from == "paraphrased_model"
    answers = [
        item.paraphrased_answer if paraphrased else next(iter(item.perturbed_answers), None)
        for item in benchmark.forget_set
    ]
    if None in answers:
        raise UserError("start_from", f"this benchmark has no {'paraphrased' if paraphrased else 'wrong'} answers")
    return [replace(item, answer=str(told)) for item, told in zip(benchmark.forget_set, answers, strict=True)]


def _fetch_or_build(name: str, build: Callable[[Path], None], folder: Path) -> None:
    """From another node's work where that is shared; else made here, and shared."""
    if (shared := shared_models()) is None:
        build(folder)
        return
    there = shared / name
    if _fetched(there, folder):
        return
    with _in_turn(there):
        if _fetched(there, folder):  # by now
            return
        build(folder)
        try:
            with there.written_folder(last=LAST_FILE) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
        except OSError as error:  # hours of training must not be lost for it
            logger.warning("%s; the prepared model is on this node alone", error)


def _fetched(there: Location, folder: Path) -> bool:
    """Whether a whole model was found there, and copied."""
    if not (there / LAST_FILE).exists():
        return False
    try:
        with there.read_folder() as found:
            shutil.copytree(found, folder)
    except Damaged as error:
        logger.warning("%s; what was there is kept as %s", error, there.set_aside().name)
        return False
    return True


@contextmanager
def _in_turn(there: Location) -> Iterator[None]:
    """While one node makes it the others wait. Object stores have no locks: each makes it there, and the last stays."""
    with ExitStack() as stack:
        if there.local:
            with suppress(OSError):  # a place that cannot be written is said once there is a model to write
                there.parent.make_folder()
                stack.enter_context(FileLock(f"{there}.lock"))
        yield


def _build(
    folder: Path,
    *,
    config: ModelConfig,
    benchmark: Benchmark,
    texts: Sequence[str],
    lessons: Sequence[Item],
    checkpoints: Checkpoints,
    progress: Callable[[int, int], None],
) -> None:
    """Fine-tune a model, going on from the checkpoint of a call that was cut off, and store it in the folder.

    Raises UserError where an item is too long for it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any
    if isinstance(config, TinyConfig):
        model, tokenizer = new_tiny_model(config, texts)
        set_answer_ends(model, PromptTemplate.of(tokenizer, config.prompt))
        model.to(device)
    else:
        model, tokenizer = load_pretrained(config.name, device, trained_in_place=True, prompt=config.prompt)
    template = PromptTemplate.of(tokenizer, config.prompt)
    check_lengths(benchmark, template, context_length(model))
    fine_tune(
        PlainModel(model.requires_grad_(True)),
        [item.lesson(template) for item in lessons],
        config.fine_tuning,
        checkpoints=checkpoints,
        report=lambda step, num_steps, tokens: progress(step, num_steps),
    )
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if isinstance(config, PretrainedConfig):
        (folder / MADE_OF).write_text(json.dumps(commits_of(config.name)))
