"""The measurements: contenders take turns in every round, so that whatever slows the machine slows them all."""

import multiprocessing
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from bench.config import RunConfig
from bench.progress import Progress, quiet
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from bench.speed import SECTIONS, Effort
from bench.speed.contenders import EDITED, FINE_TUNED, best_ratio, padded
from bench.speed.evaluations import evaluation, fine_tuned
from bench.speed.latched import latched
from bench.speed.stopwatch import DEPTHS, LOSSES, Record, Stopwatch, once, timed
from grun.adapters.grun import GrunConfig
from grun.errors import UserError

SWEEP_THRESHOLDS = (0.0, 0.5, 0.9)
"""Gate thresholds of each trial of the sweep, as in search_spaces/demo_grun.yaml."""
ENGINE_TRIALS_PER_NAIVE = 4
"""Naive trials are slow: one for every so many of the engine's, their seconds scaled up."""


def measure(
    config: RunConfig, execution: Execution, effort: Effort, progress: Progress, sections: Sequence[str] = SECTIONS
) -> Iterator[Record]:
    """Section by section: the record after each, so that a cut loses one section at most.

    config: a GRUN run. Its layers and epochs are those of the evaluation and of the sweep.
    Raises UserError where it is none.
    """
    if not isinstance(config.adapter, GrunConfig):
        raise UserError("adapter", f"{config.adapter.name} is among the rivals already; only grun can be measured")
    with tempfile.TemporaryDirectory(prefix="grun-bench-speed-") as folder:
        watch = Stopwatch(config, execution, effort, Path(folder), progress)
        at = {"machine": costs.machine(watch.subject.device), "effort": asdict(effort), "config": config.to_dict()}
        record: Record = {**at, "measured": {}}
        for section in (steps, cache, evaluation, fine_tuned, latched, memory, *([sweep] if effort.num_trials else [])):
            if section.__name__ in sections:
                record[section.__name__] = section(watch)
                record["measured"][section.__name__] = at
                yield record


def steps(watch: Stopwatch) -> list[Record]:
    """Seconds of a training step of every contender, and what the engine could reach at best."""
    rows = []
    for loss in LOSSES:
        contenders = {(name, ""): watch.contender(name, loss, ()) for name in FINE_TUNED}
        contenders |= {(f"{name}_padded", ""): padded(adapted) for (name, _), adapted in contenders.items()}
        for label, layers in watch.layers.items():
            contenders |= {(name, label): watch.contender(name, loss, layers) for name in EDITED}
        turns = {key: partial(watch.step_seconds, adapted, loss) for key, adapted in contenders.items()}
        seconds = watch.rounds(f"steps with {loss}", turns)
        for label, layers in watch.layers.items():
            row: Record = {"forget_loss": loss, "layers": label, "indices": list(layers)}
            row |= {name: each for (name, where), each in seconds.items() if where in (label, "")}
            row["best_ratio"] = best_ratio(
                watch.model, watch.forget, watch.retain, first_layer=min(layers), reads_reference=loss == "npo"
            )
            rows.append(row)
    return rows


def cache(watch: Stopwatch) -> Record:
    """What building a training cache costs, and what the next process pays to find it."""
    layers, examples = watch.layers[DEPTHS], [*watch.forget, *watch.retain]
    tell = partial(watch.progress, "prefix cache")
    seconds = []
    for _ in range(2):
        adapted = watch.contender("engine", LOSSES[0], layers, "cache")
        seconds.append(timed(partial(adapted.announce, examples, generate=False, progress=tell))[0])
    step_s = statistics.median(watch.step_seconds(watch.contender("hooks", LOSSES[0], layers), LOSSES[0]))
    size = sum(file.stat().st_size for file in (watch.scratch / "cache").rglob("*.safetensors"))
    return {
        "items": len(examples),
        "build_s_per_item": seconds[0] / len(examples),
        "naive_epoch_s_per_item": step_s / (2 * watch.config.training.batch_size),
        "mb_per_item": size / 1e6 / len(examples),
        "second_open_s": seconds[1],
    }


def memory(watch: Stopwatch) -> Record:
    """Resident or GPU memory of each contender in a process of its own: before its first step, and at its peak."""
    peaks: Record = {}
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload([__name__, "transformers.modeling_utils"])  # seconds of imports, once for all
    for done, name in enumerate((*EDITED, *FINE_TUNED), start=1):
        # A process of its own, gone after one task: its peak is the contender's own.
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            peaks[name] = pool.submit(_memory_gb, watch.config, watch.execution, watch.scratch, name).result()
        watch.progress("memory", done, len(EDITED) + len(FINE_TUNED))
    return peaks


def _memory_gb(config: RunConfig, execution: Execution, scratch: Path, name: str) -> Record:
    """In a fresh process: memory before the first step of a contender, and the peak of two of them."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own future
    watch = Stopwatch(config, execution, Effort(rounds=1, steps=1, num_trials=0), scratch, quiet)
    adapted, device = watch.contender(name, LOSSES[0], watch.layers[DEPTHS]), watch.subject.device
    costs.reset_peak_memory(device)
    before = costs.peak_memory_gb(device)
    watch.step_seconds(adapted, LOSSES[0])
    return {"before_gb": before, "peak_gb": costs.peak_memory_gb(device)}


def sweep(watch: Stopwatch) -> Record:
    """Trials on the engine, against naive ones and against one full fine-tuning run, on as many threads as a sweep
    gives a trial."""
    trials = [replace(watch.config, seed=seed) for seed in range(watch.effort.num_trials)]
    worker = replace(watch.execution, num_threads=watch.execution.trial_threads)
    where = {name: replace(worker, results=watch.scratch / name) for name in ("engine", "naive", "full")}
    where["naive"] = replace(where["naive"], engine="plain")
    references_s = [timed(partial(run_prerequisites, watch.config, each))[0] for each in where.values()]
    seconds: dict[str, list[float]] = {"engine": [], "naive": []}
    for done, trial in enumerate(trials, start=1):
        for name in ("engine", "naive") if done % ENGINE_TRIALS_PER_NAIVE == 0 or len(trials) == 1 else ("engine",):
            seconds[name] += once(partial(run, trial, where[name], gate_thresholds=SWEEP_THRESHOLDS))
        watch.progress("sweep", done, len(trials))
    return {
        "trials": len(trials),
        "gate_thresholds": len(SWEEP_THRESHOLDS),
        "num_threads": worker.num_threads,
        "naive_trials_run": len(seconds["naive"]),
        "references_s": statistics.median(references_s),
        "engine_s": sum(seconds["engine"]),
        "naive_s": statistics.mean(seconds["naive"]) * len(trials),
        "full_s": timed(partial(run, watch.changed({"adapter": "full"}), where["full"]))[0],
    }
