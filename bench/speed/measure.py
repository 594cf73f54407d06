"""The measurements: contenders take turns in every round, so that whatever slows the machine slows them all."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bench.config import RunConfig, overlay, run_config
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import evaluate
from bench.evaluation.reuse import evaluate_thresholds
from bench.progress import Progress, quiet
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from bench.speed.contenders import EDITED, FINE_TUNED, best_ratio, contender
from bench.speed.stopwatch import Effort, Record, Stopwatch, spread, timed
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted, PlainModel

LOSSES = ("grad_ascent", "npo")
CURVE = tuple(position / 20 for position in range(21))
"""Gate thresholds of the curve."""
SWEEP_THRESHOLDS = (0.0, 0.5, 0.9)
"""Gate thresholds of each trial of the sweep, as in search_spaces/demo_grun.yaml."""
ENGINE_TRIALS_PER_NAIVE = 4
"""Naive trials are slow: one for every so many of the engine's, their seconds scaled up."""


def measure(
    config: RunConfig, execution: Execution, effort: Effort, progress: Progress, save: Callable[[Record], None]
) -> Record:
    """Everything, section by section; `save` gets the record after each, so that a cut loses one section at most.

    config: a GRUN run. Its layers and epochs are those of the evaluation and of the sweep.
    Raises UserError where it is none.
    """
    if not isinstance(config.adapter, GrunConfig):
        raise UserError("adapter", f"{config.adapter.name} is among the rivals already; only grun can be measured")
    with tempfile.TemporaryDirectory(prefix="grun-bench-speed-") as folder:
        watch = Stopwatch(config, execution, effort, Path(folder), progress)
        record: Record = {"machine": watch.machine(), "effort": dataclasses.asdict(effort), "config": config.to_dict()}
        sections = {
            "steps": steps,
            "cache": cache,
            "evaluation": evaluation,
            "memory": memory,
            **({"sweep": sweep} if effort.trials else {}),
        }
        for name, section in sections.items():
            record[name] = section(watch)
            save(record)
    return record


def steps(watch: Stopwatch) -> list[Record]:
    """Seconds of a training step of every contender, and what the engine could reach at best."""
    label_of_rivals = ""
    rows = []
    for loss in LOSSES:
        own_models = {name: watch.model_for(name) for name in FINE_TUNED}
        contenders = {
            (label_of_rivals, name): contender(name, watch.config, model, (), loss, watch.caching("steps"))
            for name, model in own_models.items()
        }
        for label, layers in watch.layer_sets().items():
            for name in EDITED:
                contenders[label, name] = contender(
                    name, watch.config, watch.model, layers, loss, watch.caching("steps")
                )
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
        for turn in range(watch.effort.rounds):
            for place, (key, adapted) in enumerate(contenders.items(), start=1):
                seconds[key] += watch.step_seconds(adapted, loss)
                total = watch.effort.rounds * len(contenders)
                watch.progress(f"steps with {loss}", turn * len(contenders) + place, total)
        for label, layers in watch.layer_sets().items():
            row: Record = {"forget_loss": loss, "layers": label, "indices": list(layers)}
            row |= {name: spread(seconds[label, name]) for name in EDITED}
            row |= {name: spread(seconds[label_of_rivals, name]) for name in FINE_TUNED}
            row["best_ratio"] = best_ratio(
                watch.model,
                [item.example(watch.template) for item in watch.timed.forget_set],
                [item.example(watch.template) for item in watch.timed.retain_set],
                first_layer=min(layers),
                reads_reference=loss == "npo",
            )
            rows.append(row)
    return rows


def cache(watch: Stopwatch) -> Record:
    """What building a training cache costs, and what the next process pays to find it."""
    layers = watch.layer_sets()["at 60, 80, 100 % depth"]
    examples = [item.example(watch.template) for item in [*watch.timed.forget_set, *watch.timed.retain_set]]
    caching = watch.caching("cache")
    seconds = []
    for _ in range(2):
        adapted = contender("engine", watch.config, watch.model, layers, "grad_ascent", caching)
        started = time.perf_counter()
        adapted.announce(examples, generate=False, progress=partial(watch.progress, "prefix cache"))
        seconds.append(time.perf_counter() - started)
    naive = contender("hooks", watch.config, watch.model, layers, "grad_ascent", caching)
    step_s = statistics.median(watch.step_seconds(naive, "grad_ascent"))
    return {
        "items": len(examples),
        "build_s_per_item": seconds[0] / len(examples),
        "naive_epoch_s_per_item": step_s / (2 * watch.config.training.batch_size),
        "mb_per_item": sum(f.stat().st_size for f in caching.root.rglob("*.safetensors")) / 1e6 / len(examples),
        "second_open_s": seconds[1],
    }


def evaluation(watch: Stopwatch) -> Record:
    """One trained module: evaluated naively, and with all that can be reused, at one threshold and at 21."""
    adapted = watch.config.adapter.attach(watch.model, watch.config.seed)
    naive = watch.config.adapter.attach(watch.model, watch.config.seed)
    assert isinstance(adapted, EditedModel)
    assert isinstance(naive, EditedModel)
    adapted.use_prefix_caching(watch.caching("evaluation"))
    watch.train(adapted, "grad_ascent", watch.config.training.num_epochs, watch.data)
    naive.edits.load_state_dict(adapted.edits.state_dict())
    naive.train(False)
    splits, settings = watch.data.evaluation, watch.config.evaluation

    def asking(model: Adapted, decode_all: bool = False) -> Asking:
        return Asking(adapted=model, template=watch.template, config=settings, decode_all=decode_all)

    base_s, base = timed(lambda: evaluate(asking(PlainModel(watch.model)), splits))

    def reused(*thresholds: float) -> list[list[Record]]:
        return evaluate_thresholds(asking(adapted), splits, thresholds, base)

    def plainly(threshold: float) -> list[Record]:
        set_gate_threshold(naive, threshold)
        return evaluate(asking(naive, decode_all=True), splits)

    first_s, (soft,) = timed(lambda: reused(0.0))
    # The threshold that shuts every gate off the forget set, whatever it does to the forget set itwatch.
    shut = math.nextafter(max(gate for row in soft if row["split"] != "forget" for gate in row["gate"]), math.inf)
    forget = [row for row in soft if row["split"] == "forget"]
    contenders: dict[str, Callable[[], Any]] = {
        "naive": lambda: plainly(0.0),
        "naive_shut": lambda: plainly(shut),
        "reused": lambda: reused(0.0),
        "reused_shut": lambda: reused(shut),
        "reused_curve": lambda: reused(*CURVE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1, watch.effort.rounds + 1):
        for name, each in contenders.items():
            seconds[name].append(timed(each)[0])
        watch.progress("evaluation", turn, watch.effort.rounds)
    return {
        "items": len(soft),
        "base_model_s": base_s,
        "reused_empty_cache_s": first_s,
        "shut_threshold": shut,
        "forget_prompts_open_at_shut": sum(max(row["gate"]) >= shut for row in forget) / len(forget),
    } | {name: spread(values) for name, values in seconds.items()}


def memory(watch: Stopwatch) -> Record:
    """Resident or GPU memory of each contender in a process of its own: before its first step, and at its peak."""
    names = (*EDITED, *FINE_TUNED)
    peaks: Record = {}
    for done, name in enumerate(names, start=1):
        # A process of its own, gone after one task: its peak is the contender's own.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            job = pool.submit(_memory_gb, watch.config, watch.execution, watch.scratch, name)
            peaks[name] = dict(zip(("before_gb", "peak_gb"), job.result(), strict=True))
        watch.progress("memory", done, len(names))
    return peaks


def sweep(watch: Stopwatch) -> Record:
    """Trials on the engine, against naive ones and against one full fine-tuning run."""
    trials = [dataclasses.replace(watch.config, seed=seed) for seed in range(watch.effort.trials)]
    full = run_config(overlay(watch.config.to_dict(), {"adapter": "full"}))
    where = {name: dataclasses.replace(watch.execution, results=watch.scratch / name) for name in ("engine", "full")}
    where["naive"] = dataclasses.replace(watch.execution, results=watch.scratch / "naive", engine="plain")
    references_s = {name: timed(partial(run_prerequisites, watch.config, each))[0] for name, each in where.items()}
    seconds: dict[str, list[float]] = {"engine": [], "naive": []}
    for done, trial in enumerate(trials, start=1):
        for name in ("engine", "naive") if done % ENGINE_TRIALS_PER_NAIVE == 0 or len(trials) == 1 else ("engine",):
            train = partial(run, trial, where[name], gate_thresholds=SWEEP_THRESHOLDS)
            seconds[name].append(timed(train)[0])
        watch.progress("sweep", done, len(trials))
    return {
        "trials": len(trials),
        "gate_thresholds": len(SWEEP_THRESHOLDS),
        "naive_trials_run": len(seconds["naive"]),
        "references_s": statistics.median(references_s.values()),
        "engine_s": sum(seconds["engine"]),
        "naive_s": statistics.mean(seconds["naive"]) * len(trials),
        "full_s": timed(partial(run, full, where["full"]))[0],
    }


def _memory_gb(config: RunConfig, execution: Execution, scratch: Path, name: str) -> tuple[float, float]:
    """In a fresh process: memory before the first step of a contender, and the peak of two of them."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own future
    watch = Stopwatch(config, execution, Effort(rounds=1, steps=1, trials=0), scratch, quiet)
    layers = watch.layer_sets()["at 60, 80, 100 % depth"]
    if name in FINE_TUNED:
        watch.model = watch.model_for(name)
    adapted = contender(name, config, watch.model, layers, "grad_ascent", watch.caching("steps"))
    costs.reset_peak_memory(watch.device)
    before = costs.peak_memory_gb(watch.device)
    watch.step_seconds(adapted, "grad_ascent")
    return before, costs.peak_memory_gb(watch.device)
