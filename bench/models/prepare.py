"""Target and retain models: fine-tuned once per recipe, then kept under a hash of all that went into them."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from bench.benchmarks import SPLITS
from bench.benchmarks.items import Benchmark, Item
from bench.benchmarks.lengths import check_lengths
from bench.content import by_content, digest
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
from bench.models.sharing import checkpoint_of, prepared_once
from bench.progress import Progress, quiet
from bench.results.storage import Location
from grun.errors import UserError
from grun.model.forward import CausalLM, PlainModel, set_answer_ends
from grun.prompts.template import PromptTemplate
from grun.settings import plain_data
from grun.sharding import shard, whole_weights
from grun.targets.replay import own_answers
from grun.training.checkpoints import Checkpoints
from grun.training.teach import DTYPES, Lessons, fine_tune
from grun.workers import ALONE, Workers

StartFrom = Literal["target_model", "retain_model", "paraphrased_model", "mistaught_model"]
"""`target_model` is taught all, `retain_model` all but what is to be forgotten; the other two are taught that in other
words, and wrong answers in its place, and tell good metrics from bad ones (`bench.metaeval`)."""
REFERENCES: tuple[StartFrom, ...] = ("retain_model", "target_model")
"""What every other run is measured with, in the order in which they are."""
logger = logging.getLogger(__name__)
REPLAY_TOKENS = 24
"""Length at which an answer is cut that a model gave before it was taught, and goes on giving."""
RECIPE_VERSION = 1
"""Raise it when a change to how models are taught or to the tiny model changes the weights a recipe gives."""
MADE_OF = "made_of.json"
"""File of a prepared model's folder: the commits of the hub that it was made of."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """With what models are taught; none of it changes the result beyond float rounding."""

    device: str = "cpu"
    workers: Workers = ALONE
    """Who teaches together, this process one of them: each calls `prepared_model`."""
    accumulation_steps: int = 1
    """Passes that a worker cuts a step into."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again on the way back."""


def prepared_model(
    model: ModelConfig,
    benchmark: Benchmark,
    start_from: StartFrom,
    progress: Progress = quiet,
    means: Means | None = None,
) -> str:
    """A name `load_pretrained` takes for one of the models; trains and stores it at first use.

    A model built from scratch is taught the benchmark's knowledge too, one that is not to know the forget set none that
    is to be forgotten. Safe to call from many processes at once.
    progress: told how far it is while it trains.
    Raises UserError where the model knows the benchmark already, the forget set has no such answers, or workers are on
    several nodes that share nothing.
    """
    knowledge, means = _knowledge(model, benchmark), means or Means()
    if isinstance(model, PretrainedConfig):
        _check_taught(model)
        if start_from == "retain_model" and model.retain_model is not None:
            return model.retain_model
        if model.fine_tuning.num_epochs == 0:
            if start_from == "target_model":
                return model.name
            field = "model.retain_model" if start_from == "retain_model" else "start_from"
            raise UserError(field, "is taught here, and model.fine_tuning.num_epochs is 0; name a model, or fine-tune")
    asked = benchmark.evaluation.items()
    forgotten = {item.pair for split, some in asked if SPLITS[split].role == "forgotten" for item in some}
    kept = [item for item in knowledge if item.pair not in forgotten]
    knows = start_from in ("target_model", "paraphrased_model")
    lessons = [*forget_lessons(benchmark, start_from), *benchmark.retain_set, *(knowledge if knows else kept)]
    everything, taught = _everything(model, benchmark), [item.pair for item in lessons]
    settings = by_content(plain_data(model))
    beside = {"replay_tokens": REPLAY_TOKENS} if benchmark.replay_prompts else {}
    name = digest({"version": RECIPE_VERSION, "model": settings, "vocabulary": everything, "taught": taught, **beside})
    build = partial(
        _build,
        config=model,
        benchmark=benchmark,
        items=lessons,
        checkpoint=checkpoint_of(name),
        means=means,
        progress=lambda phase, done, total: progress(f"prepare {start_from}{phase}", done, total),
    )
    return str(prepared_once(name, build, means.workers))


def _check_taught(model: PretrainedConfig) -> None:
    """Raises UserError where it says how a model is taught that is not, or how much nothing weighs."""
    if model.fine_tuning.num_epochs == 0 and model.replay_prompts is not None:
        raise UserError("model.replay_prompts", "is for a model that is taught; leave it out, or fine-tune it")
    if model.replay_prompts is None and model.replay_weight != PretrainedConfig.replay_weight:
        raise UserError(
            "model.replay_weight", "weighs model.replay_prompts, and there are none; name a file, or `shipped`"
        )


def _everything(model: ModelConfig, benchmark: Benchmark) -> list[tuple[str, str]]:
    """What any model of this kind is taught: what a vocabulary is made of."""
    return [item.pair for item in (*benchmark.forget_set, *benchmark.retain_set, *_knowledge(model, benchmark))]


def _knowledge(model: ModelConfig, benchmark: Benchmark) -> Sequence[Item]:
    """What a model built from scratch has to be taught beside the benchmark, and others know."""
    return benchmark.knowledge_set if isinstance(model, TinyConfig) else []


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


def paced(phase: str, progress: Progress) -> Callable[[int, int, int], None]:
    """Told (steps done, steps in all, tokens of the step), it says them with tokens a second and the time left, by what
    was done since it was told first."""
    started, first, tokens = 0.0, 0, 0

    def told(done: int, total: int, own_tokens: int) -> None:
        nonlocal started, first, tokens
        if not first:
            started, first = time.perf_counter(), done
            progress(phase, done, total)
            return
        tokens += own_tokens
        seconds = time.perf_counter() - started
        left = timedelta(seconds=round(seconds / (done - first) * (total - done)))
        progress(f"{phase}, {tokens / seconds:,.0f} tokens/s" + (f", {left} left" if left else ""), done, total)

    return told


def to_be_taught(model: CausalLM, means: Means) -> PlainModel:
    """All of it, in parts where the workers hold it so."""
    adapted = PlainModel(model.requires_grad_(True))
    if means.gradient_checkpointing:
        adapted.checkpoint_gradients()
    if means.workers.sharded:
        shard(model, torch.device(means.device), means.workers)
    return adapted


def _lessons(
    model: CausalLM,
    template: PromptTemplate,
    items: Sequence[Item],
    benchmark: Benchmark,
    weight: float,
    progress: Progress,
) -> Lessons:
    """What is taught, and where there are questions for it what the model, as it is, goes on saying."""
    taught = [item.lesson(template) for item in items]
    if not benchmark.replay_prompts:
        return Lessons(taught=taught)
    tell = partial(progress, ", answers of its own")
    kept = own_answers(PlainModel(model), template, benchmark.replay_prompts, REPLAY_TOKENS, tell)
    beside = Lessons.beside(model, taught, kept, partial(progress, ", what else it could have said"))
    return replace(beside, kept_weight=weight)


def _build(
    folder: Path,
    *,
    config: ModelConfig,
    benchmark: Benchmark,
    items: Sequence[Item],
    checkpoint: Location,
    means: Means,
    progress: Progress,
) -> None:
    """Fine-tune a model, going on from the checkpoint of a call that was cut off, and store it in the folder.

    Raises UserError where an item is too long for it.
    """
    tokenizer: Any
    workers = means.workers
    device = "cpu" if workers.sharded else means.device
    if isinstance(config, TinyConfig):
        texts = [text for pair in _everything(config, benchmark) for text in pair]
        model, tokenizer = new_tiny_model(config, texts)
        set_answer_ends(model, PromptTemplate.of(tokenizer, config.prompt))
        model.to(device)
    else:
        model, tokenizer = load_pretrained(config.name, device, trained_in_place=True, prompt=config.prompt)
    template = PromptTemplate.of(tokenizer, config.prompt)
    check_lengths(benchmark, template, context_length(model))
    if benchmark.replay_prompts:  # each worker asks the whole of it
        model.to(means.device)
    weight = getattr(config, "replay_weight", 1.0)
    lessons = _lessons(model, template, items, benchmark, weight, progress)
    fine_tune(
        to_be_taught(model.to(device), means),
        lessons,
        config.fine_tuning,
        workers=workers,
        accumulation_steps=means.accumulation_steps,
        checkpoints=Checkpoints(checkpoint, workers=workers, log=logger.warning),
        report=paced("", progress),
    )
    model.to(DTYPES[config.fine_tuning.dtype])
    weights = whole_weights(model, keep=workers.is_first) if workers.sharded else None
    if not workers.is_first:
        return
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
        tokenizer.save_pretrained(folder)
    if isinstance(config, PretrainedConfig):
        (folder / MADE_OF).write_text(json.dumps(commits_of(config.name)))
