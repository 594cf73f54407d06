"""One run: prepare, attach, unlearn, evaluate, write. `train` and every trial of a sweep call the same function."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig
from bench.evaluation.evaluate import evaluate, evaluate_thresholds, evenly_spread
from bench.evaluation.robustness import attack
from bench.evaluation.score import score
from bench.files import write_yaml
from bench.progress import Progress, quiet
from bench.results import store
from bench.results.columns import RUNS_SCHEMA
from bench.results.storage import Location
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.related import at_thresholds, has_retain_model, reference_config, references
from bench.runs.subject import Subject
from grun.adapters.grun import set_gate_threshold
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted, CausalLM, PlainModel
from grun.prompts import PromptTemplate
from grun.sharding import shard
from grun.targets.target import ForgetSet
from grun.training.checkpoints import Checkpoints
from grun.training.plan import Plan, plan_steps
from grun.training.recipe import Recipe
from grun.training.reference import Reference, reference_of
from grun.training.unlearn import unlearn
from grun.unlearned import save
from grun.workers import ALONE, Workers

Row = dict[str, Any]
TRAINING = "training.json"
"""File of a module's folder with what its training cost; where it is, the module is whole."""
CHECKPOINT_SECONDS = 60.0
"""A training that lasts longer leaves a checkpoint this often, to go on from if it is cut off."""
logger = logging.getLogger(__name__)


def evaluate_references(config: RunConfig, execution: Execution, progress: Progress = quiet) -> list[Row]:
    """Rows of the retain and the target model, evaluated only where they are not in the results yet."""
    return [
        run(reference_config(config, start_from), execution, progress=progress)[0] for start_from in references(config)
    ]


def run(
    config: RunConfig,
    execution: Execution,
    *,
    gate_thresholds: Sequence[float] = (),
    study: str | None = None,
    progress: Progress = quiet,
) -> list[Row]:
    """Train (or load what an earlier run trained), evaluate, write; returns the rows of `runs`.

    The first row is that of `config`; a GRUN run has a further one for each other of `gate_thresholds`, all from
    one trained module. What is in the results already is not computed again.
    """
    configs = at_thresholds(config, gate_thresholds)
    found = [store.read_run(execution.folder, each.run_key) for each in configs]
    missing = [each for each, row in zip(configs, found, strict=True) if row is None]
    if missing:
        store.create(execution.folder)
        if execution.uses_ray_train:
            from bench.runs.ray_train import run_on_workers  # Ray, and seconds of imports

            run_on_workers(missing, execution, study=study, progress=progress)
        else:
            run_missing(missing, execution, study=study, progress=progress)
        found = [store.read_run(execution.folder, each.run_key) for each in configs]
    return [row for row in found if row is not None]


def run_missing(
    configs: Sequence[RunConfig],
    execution: Execution,
    *,
    study: str | None,
    progress: Progress = quiet,
    workers: Workers = ALONE,
) -> None:
    """One worker's part in training, evaluating and writing; the configs differ in their gate threshold alone."""
    config = configs[0]
    subject = Subject(config=config, execution=execution, progress=progress)
    costs.reset_peak_memory(subject.device)
    subject.source  # noqa: B018  a model that cannot be prepared is no failed run
    try:
        adapted, trained = _train_or_load(subject, workers)
        started = time.perf_counter()
        measured = _measure(configs, subject, adapted, workers)
        cost = {
            # A curve of thresholds is one evaluation: its rows share the seconds.
            "eval_seconds": (time.perf_counter() - started) / len(configs),
            "peak_memory_gb": costs.peak_memory_gb(subject.device),
        }
        if workers.is_first:
            retain_model_items = _retain_model_items(config, execution, progress)
            for each, items in zip(configs, measured, strict=True):
                _write(each, execution, adapted, items, retain_model_items, trained | cost, study)
            _checkpoint(config, execution).remove()
    except Exception as error:
        store.write_run(execution.folder, failed_row(config, error, study))
        raise


def failed_row(config: RunConfig, error: BaseException, study: str | None) -> Row:
    """The row of a run that ended in an error: its config, the error in one line, no metrics."""
    message = " ".join(str(error).split()) or "no message"
    text = message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"
    return config_columns(config) | {"study": study, "status": "failed", "error": text[:500], "created_at": _now()}


def _train_or_load(subject: Subject, workers: Workers) -> tuple[Adapted, Row]:
    """The unlearned model, and the cost columns of its training."""
    config, execution, progress = subject.config, subject.execution, subject.progress
    folder = execution.folder / "modules" / config.train_key
    if (folder / TRAINING).exists():
        try:
            return subject.loaded(folder), json.loads((folder / TRAINING).read())
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            logger.warning("%s is damaged (%s); training again", folder, type(error).__name__)
            folder.remove()
            subject = dataclasses.replace(subject)  # its model is half another one by now
    if execution.shard:
        config.adapter.attach(subject.model, config.seed)  # settles what is trained
        shard(subject.model, subject.device, workers)
    if not config.adapter.trains:
        return subject.attached(), {"trainable_parameters": 0, "train_seconds": 0.0}
    plan, reference = plan_of(
        config,
        subject.benchmark,
        subject.template,
        subject.model,
        progress,
        workers=workers,
        accumulation_steps=execution.accumulation_steps,
    )
    adapted = subject.attached()
    if execution.gradient_checkpointing and isinstance(adapted, PlainModel):
        adapted.checkpoint_gradients()
    checkpoints = Checkpoints(
        _checkpoint(config, execution), every_seconds=CHECKPOINT_SECONDS, writes=workers.is_first, log=logger.warning
    )
    done = unlearn(
        adapted,
        plan,
        Recipe.of(config),
        reference,
        report=lambda step: progress(f"unlearn, loss {step.loss:.3f}", step.step, step.num_steps),
        progress=progress,
        checkpoints=None if execution.shard else checkpoints,
    )
    trained = {
        "trainable_parameters": sum(p.numel() for p in adapted.trainable_parameters()),
        "train_seconds": done.seconds,
        "num_steps": done.steps,
    }
    if execution.save_module and workers.is_first:
        with folder.written_folder(last=TRAINING) as scratch:
            _save_module(config, adapted, trained, subject.source, scratch)
    elif execution.save_module and workers.sharded:  # the first one needs every other's part
        with tempfile.TemporaryDirectory() as unused:
            _save_module(config, adapted, trained, subject.source, Path(unused))
    return adapted, trained


def _checkpoint(config: RunConfig, execution: Execution) -> Location:
    return execution.folder / "checkpoints" / f"{config.train_key}.safetensors"


def plan_of(
    config: RunConfig,
    benchmark: Benchmark,
    template: PromptTemplate,
    model: CausalLM,
    progress: Progress = quiet,
    *,
    workers: Workers = ALONE,
    accumulation_steps: int = 1,
) -> tuple[Plan, Reference | None]:
    """What this worker trains on, and what its losses need of the untouched model."""
    recipe = Recipe.of(config)
    forget = ForgetSet(items=benchmark.forget_set, template=template, model=model)
    plan = plan_steps(
        recipe,
        forget.examples(recipe.forget_loss.targets),
        [item.example(template) for item in benchmark.retain_set],
        workers=workers,
        accumulation_steps=accumulation_steps,
    )
    return plan, reference_of(model, plan, recipe, batch_size=config.evaluation.batch_size, progress=progress)


def _retain_model_items(config: RunConfig, execution: Execution, progress: Progress) -> list[Row] | None:
    """The retain model's items, evaluated now if they are not there; None where `config` has or is none."""
    gold = reference_config(config, "retain_model")
    if not has_retain_model(config) or gold.run_key == config.run_key:
        return None
    run(gold, execution, progress=progress)
    return store.read_items(execution.folder, gold.run_key)


def _save_module(config: RunConfig, adapted: Adapted, trained: Row, source: str, folder: Path) -> None:
    save(adapted, config.adapter, source, folder)
    write_yaml(folder / "run.yaml", config.to_dict())
    (folder / TRAINING).write_text(json.dumps(trained))


def _measure(configs: Sequence[RunConfig], subject: Subject, adapted: Adapted, workers: Workers) -> list[list[Row]]:
    """Item rows of each config; the configs differ in their gate threshold alone."""
    adapted.train(False)
    curve = _evaluated(configs, subject, adapted, workers)
    robustness = configs[0].evaluation.robustness
    if robustness is None:
        return curve
    forget = subject.benchmark.evaluation.get("forget")
    if forget is None:
        raise UserError(
            "evaluation.robustness", f"{subject.benchmark.name} asks nothing of its forget set; leave it out"
        )
    asked = evenly_spread(len(forget), configs[0].evaluation.max_items_per_split)
    for each, rows in zip(configs, curve, strict=True):
        if each.adapter.is_gated and isinstance(adapted, EditedModel):
            set_gate_threshold(adapted, each.adapter.gate_threshold)
        rows += attack(
            adapted,
            subject.template,
            [(index, forget[index]) for index in asked],
            robustness,
            learning_rate=each.model.fine_tuning.learning_rate,
            max_new_tokens=each.evaluation.max_new_tokens,
            batch_size=each.evaluation.batch_size,
            progress=subject.progress,
            workers=workers,
        )
    return curve


def _evaluated(configs: Sequence[RunConfig], subject: Subject, adapted: Adapted, workers: Workers) -> list[list[Row]]:
    """Item rows of each config without attacks."""
    first = configs[0]
    measure = partial(
        evaluate,
        adapted,
        subject.template,
        subject.benchmark.evaluation,
        first.evaluation,
        subject.progress,
        workers=workers,
        decode_all=subject.execution.engine == "plain",
    )
    if not first.adapter.is_gated or not isinstance(adapted, EditedModel):
        return [measure()]
    thresholds = [each.adapter.gate_threshold for each in configs if each.adapter.is_gated]
    if subject.execution.engine == "plain":
        curve = []
        for gate_threshold in thresholds:
            set_gate_threshold(adapted, gate_threshold)
            curve.append(measure())
        return curve
    base = reference_config(first, first.start_from)
    run(base, subject.execution, progress=subject.progress)
    base_items = store.read_items(subject.execution.folder, base.run_key)
    assert base_items is not None, "it was written just now"
    return evaluate_thresholds(
        adapted,
        subject.template,
        subject.benchmark.evaluation,
        first.evaluation,
        thresholds,
        base_items,
        subject.progress,
        workers=workers,
    )


def _write(
    config: RunConfig,
    execution: Execution,
    adapted: Adapted,
    items: list[Row],
    retain_model_items: list[Row] | None,
    costs_so_far: Row,
    study: str | None,
) -> None:
    """Score the items and write them with the run's row."""
    if config.method == "retain_model":
        retain_model_items = items
    gate_threshold = config.adapter.gate_threshold if config.adapter.is_gated else 0.0
    edited = adapted if isinstance(adapted, EditedModel) else None
    row = (
        config_columns(config)
        | costs_so_far
        | score(items, retain_model_items, gate_threshold)
        | {
            "study": study,
            "status": "ok",
            "layers": list(edited.layers) if edited else None,
            "engine": edited.engine if edited else None,
            "device": costs.device_name(adapted.device),
            "num_threads": torch.get_num_threads(),
            "versions": costs.versions(),
            "git_sha": costs.git_sha(),
            "created_at": _now(),
        }
    )
    store.write_run(execution.folder, row, items)


def config_columns(config: RunConfig) -> Row:
    """A row with the columns that follow from the config alone; the rest are null."""
    adapter = config.adapter
    row: Row = dict.fromkeys(RUNS_SCHEMA.names) | {
        "run_key": config.run_key,
        "train_key": config.train_key,
        "method": config.method,
        "benchmark": config.benchmark.name,
        "forget_split": config.benchmark.forget_split,
        "model": config.model.name,
        "adapter": adapter.name,
        "seed": config.seed,
        "config_json": config.to_json(),
    }
    if not adapter.trains:
        return row
    settings = dataclasses.asdict(adapter)
    return row | {
        "forget_loss": config.forget_loss.name,
        "retain_loss": config.retain_loss.name,
        "gate_function": settings.get("gate_function"),
        "gate_threshold": settings.get("gate_threshold"),
        "rank": settings.get("rank", settings.get("r")),
        "learning_rate": adapter.learning_rate,
        "num_epochs": config.training.num_epochs,
        "forget_weight": config.training.forget_weight,
        "retain_weight": config.training.retain_weight,
        "gate_weight": settings.get("gate_weight"),
    }


def _now() -> datetime:
    return datetime.now(UTC)
