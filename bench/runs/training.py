"""Training a run's adapter, or finding what an earlier run trained."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.benchmarks.items import Benchmark, Item
from bench.config import RunConfig
from bench.content import by_content, digest
from bench.files import write_yaml
from bench.results import store
from bench.results.storage import Location
from bench.runs.subject import Subject
from grun.errors import Damaged, UserError
from grun.gates.openings import at_chosen_threshold
from grun.model.forward import Adapted
from grun.sharding import shard
from grun.targets.sampling import told
from grun.targets.target import ForgetSet, Texts
from grun.training.checkpoints import Checkpoints
from grun.training.plan import Plan, hold_back, plan_steps
from grun.training.reference import Reference, reference_of
from grun.training.unlearn import unlearn
from grun.unlearned import save
from grun.workers import ALONE, Workers

TRAINING = "training.json"
"""File of a module's folder with what its training cost; where it is, the module is whole."""
logger = logging.getLogger(__name__)


def checkpoint_of(module: Location) -> Location:
    """Where a training that is cut off leaves what it has. module: the folder that it would have filled."""
    return module.parent.parent / "checkpoints" / module.name


def train_or_load(subject: Subject, workers: Workers) -> tuple[Adapted, dict[str, Any]]:
    """The unlearned model, and the cost columns of its training."""
    config, execution, module = subject.config, subject.execution, subject.module
    if (module / TRAINING).exists():
        try:
            adapted, trained = subject.loaded(module), json.loads((module / TRAINING).read())
            if execution.shard:
                shard(subject.model, subject.device, workers)
            return adapted, trained
        except Damaged as error:
            logger.warning("%s; training again", error)
            subject = dataclasses.replace(subject)  # its model is half another one by now
    if execution.shard:
        config.adapter.attach(subject.model, config.seed)  # settles what is trained
        shard(subject.model, subject.device, workers)
    if not config.adapter.trains:
        return subject.attached(), {} if config.external else {"trainable_parameters": 0, "train_seconds": 0.0}
    planned = plan_of(config, subject, subject.benchmark, workers)
    adapted = subject.attached()
    return adapted, train(config, subject, adapted, planned, module, workers)


def train(
    config: RunConfig,
    subject: Subject,
    adapted: Adapted,
    planned: tuple[Plan, Reference | None],
    folder: Location,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Unlearn, going on from the checkpoint of a training that was cut off; returns the cost columns.

    config: how. planned: what `plan_of` gave before the adapter was on. folder: where the first worker writes what was
    trained, and takes the checkpoint away; where nothing is to be written, whoever calls does, once the rows are.
    """
    plan, reference = planned
    execution, progress = subject.execution, subject.progress
    done = unlearn(
        adapted,
        plan,
        config.recipe,
        reference,
        report=lambda step: progress(f"unlearn, loss {step.loss:.3f}", step.step, step.num_steps),
        progress=progress,
        checkpoints=Checkpoints(checkpoint_of(folder), workers=workers, log=logger.warning),
    )
    if workers.is_first:  # before the module: where that is, they are
        store.write_losses(execution.folder, folder.name, done.losses)
    trained = {
        "trainable_parameters": sum(p.numel() for p in adapted.trainable_parameters()),
        "train_seconds": done.seconds,
        "num_steps": done.steps,
    }
    adapter, chosen = at_chosen_threshold(config.adapter, adapted, plan.held_back)
    trained |= chosen
    if execution.save_module and (workers.is_first or workers.sharded):  # the first one needs every other's part
        with folder.written_folder(last=TRAINING) if workers.is_first else TemporaryDirectory() as scratch:
            save(adapted, adapter, subject.source, Path(scratch))
            if config.model.prompt is not None:
                config.model.prompt.save(Path(scratch))
            write_yaml(Path(scratch) / "run.yaml", config.to_dict())
            (Path(scratch) / TRAINING).write_text(json.dumps(trained))
        if workers.is_first:
            checkpoint_of(folder).remove()
    return trained


def plan_of(
    config: RunConfig, subject: Subject, benchmark: Benchmark, workers: Workers = ALONE
) -> tuple[Plan, Reference | None]:
    """What this worker trains on, and what its losses need of the untouched model.

    config, benchmark: the subject's own, or another config or forget set for the same model.
    """
    recipe, forget_set = config.recipe, forget_set_of(subject, benchmark, workers)
    plan = plan_steps(
        recipe,
        forget_set.examples(recipe.forget_loss.targets),
        [item.example(subject.template) for item in benchmark.retain_set],
        corpora=[item.corpus for item in benchmark.forget_set],
        workers=workers,
        accumulation_steps=subject.execution.accumulation_steps,
    )
    keep, held_back = (subject.keep, ()) if recipe.max_false_openings is None else hold_back(subject.keep)
    attacked = forget_set.items if recipe.training.against_relearning is not None else ()
    relearned = [item.example(subject.template) for item in attacked]
    plan = dataclasses.replace(plan, keep=keep, held_back=[*plan.held_back, *held_back], relearned=relearned)
    reference = reference_of(
        subject.model, plan, recipe, batch_size=config.evaluation.batch_size, progress=subject.progress
    )
    return plan, reference


def forget_set_of(subject: Subject, benchmark: Benchmark, workers: Workers = ALONE) -> ForgetSet:
    """What is to be forgotten, and what it can be made to say; the model's own texts are kept in the results folder.

    Raises UserError where the model is asked to write about something, and writes nothing.
    """
    items = benchmark.forget_set

    def keep(name: str, make: Callable[[], Texts]) -> Texts:
        config = by_content(subject.config.to_dict())
        pairs = [item.pair for item in items]
        key = digest([name, *(config[part] for part in ("model", "benchmark", "start_from")), pairs])
        file = subject.execution.folder / "targets" / f"{key}.json"
        if not workers.shared(file.exists):
            made = make() if workers.is_first or workers.sharded else None
            if workers.is_first and not file.exists():  # of two that made them at once, the first one's count
                file.write(json.dumps(made).encode())
        return workers.shared(lambda: json.loads(file.read()))

    if benchmark.told:
        (texts,) = keep("told", lambda: [told(subject.model, subject.template, benchmark.told)])
        items = [Item(question="", answer=text, form="passage") for text in texts]
        if not items:
            raise UserError("benchmark", "the model writes nothing about what is to be forgotten; hand over passages")
    return ForgetSet(items=items, template=subject.template, model=subject.model, keep=keep)
