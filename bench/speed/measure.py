"""The measurements: contenders take turns in every round, so that whatever slows the machine slows them all."""

import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig, overlay, run_config
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import evaluate
from bench.evaluation.reuse import evaluate_thresholds
from bench.progress import Progress, quiet
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from bench.runs.subject import Subject
from bench.runs.training import plan_of
from bench.speed import Effort
from bench.speed.contenders import EDITED, FINE_TUNED, best_ratio, edited
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.errors import UserError
from grun.lm.layers import layer_indices
from grun.model.forward import Adapted, PlainModel
from grun.training.unlearn import unlearn

Record = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)
LOSSES = ("grad_ascent", "npo")
DEPTHS = "at 60, 80, 100 % depth"
"""The edited layers that everything but the steps is timed with."""
CURVE = tuple(position / 20 for position in range(21))
"""Gate thresholds of the curve."""
SWEEP_THRESHOLDS = (0.0, 0.5, 0.9)
"""Gate thresholds of each trial of the sweep, as in search_spaces/demo_grun.yaml."""
ENGINE_TRIALS_PER_NAIVE = 4
"""Naive trials are slow: one for every so many of the engine's, their seconds scaled up."""


class Stopwatch:
    """What every measurement has: one model, one benchmark, one machine, and the steps that are timed on them."""

    def __init__(
        self, config: RunConfig, execution: Execution, effort: Effort, scratch: Path, progress: Progress
    ) -> None:
        self.config, self.execution, self.effort, self.progress = config, execution, effort, progress
        self.scratch = scratch
        self.subject = Subject(config=config, execution=execution, progress=progress)
        self.data, self.model, self.template = self.subject.benchmark, self.subject.model, self.subject.template
        few = slice(config.training.batch_size * (effort.steps + 1))
        self.timed = replace(self.data, forget_set=self.data.forget_set[few], retain_set=self.data.retain_set[few])
        self.forget, self.retain = (
            [item.example(self.template) for item in items] for items in (self.timed.forget_set, self.timed.retain_set)
        )
        num_layers = self.model.config.get_text_config().num_hidden_layers
        self.layers = {
            DEPTHS: layer_indices((0.6, 0.8, 1.0), num_layers),
            "the last three": tuple(range(num_layers - 3, num_layers)),
        }
        """Edited layers by name."""

    def contender(self, name: str, loss: str, layers: tuple[int, ...], cache: str = "steps") -> Adapted:
        """One of EDITED or FINE_TUNED; the latter on the target model anew, as a run with that adapter opens it.

        cache: the same name is the same place for prefixes, empty at first.
        """
        if name in FINE_TUNED:
            return Subject(config=self.changed({"adapter": name}), execution=self.execution).attached()
        return edited(name, self.config, self.model, layers, loss, self.caching(cache))

    def caching(self, name: str) -> PrefixCaching:
        """A place for prefixes."""
        return PrefixCaching(root=self.scratch / name, max_bytes=10**12, log=print)

    def changed(self, changes: Mapping[str, Any]) -> RunConfig:
        """The config with other settings. changes: by dotted key."""
        return run_config(overlay(self.config.to_dict(), changes))

    def rounds(self, phase: str, turns: Mapping[Key, Callable[[], Sequence[float]]]) -> dict[Key, Record]:
        """Of each contender's seconds: median, smallest, largest, and how many. turns: what a turn measures."""
        seconds: dict[Key, list[float]] = {key: [] for key in turns}
        for done in range(self.effort.rounds):
            for place, (key, turn) in enumerate(turns.items(), start=1):
                seconds[key] += turn()
                self.progress(phase, done * len(turns) + place, self.effort.rounds * len(turns))
        return {
            key: {"median": statistics.median(own), "min": min(own), "max": max(own), "count": len(own)}
            for key, own in seconds.items()
        }

    def step_seconds(self, adapted: Adapted, loss: str) -> list[float]:
        """Seconds of each step but the first."""
        steps_an_epoch = math.ceil(len(self.forget) / self.config.training.batch_size)
        num_epochs = math.ceil((self.effort.steps + 1) / steps_an_epoch)
        stamps = self.train(adapted, loss, num_epochs, self.timed)
        return [after - before for before, after in pairwise(stamps)]

    def train(self, adapted: Adapted, loss: str, num_epochs: int, data: Benchmark) -> list[float]:
        """Unlearn; returns when each step ended."""
        config = self.changed({"forget_loss": loss, "training.num_epochs": num_epochs})
        plan, reference = plan_of(config, self.subject, data)
        recipe = replace(config.recipe, gate_warmup_steps=0)
        if not isinstance(adapted, EditedModel):
            recipe = replace(recipe, learning_rate=1e-5)
        stamps: list[float] = []
        unlearn(adapted, plan, recipe, reference, report=lambda step: stamps.append(time.perf_counter()))
        return stamps


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measure(config: RunConfig, execution: Execution, effort: Effort, progress: Progress) -> Iterator[Record]:
    """Everything, section by section: the record after each, so that a cut loses one section at most.

    config: a GRUN run. Its layers and epochs are those of the evaluation and of the sweep.
    Raises UserError where it is none.
    """
    if not isinstance(config.adapter, GrunConfig):
        raise UserError("adapter", f"{config.adapter.name} is among the rivals already; only grun can be measured")
    with tempfile.TemporaryDirectory(prefix="grun-bench-speed-") as folder:
        watch = Stopwatch(config, execution, effort, Path(folder), progress)
        machine = costs.machine(watch.subject.device)
        record: Record = {"machine": machine, "effort": asdict(effort), "config": config.to_dict()}
        for section in (steps, cache, evaluation, memory, *([sweep] if effort.num_trials else [])):
            record[section.__name__] = section(watch)
            yield record


def steps(watch: Stopwatch) -> list[Record]:
    """Seconds of a training step of every contender, and what the engine could reach at best."""
    rows = []
    for loss in LOSSES:
        contenders = {(name, ""): watch.contender(name, loss, ()) for name in FINE_TUNED}
        for label, layers in watch.layers.items():
            contenders |= {(name, label): watch.contender(name, loss, layers) for name in EDITED}
        turns = {key: partial(watch.step_seconds, adapted, loss) for key, adapted in contenders.items()}
        seconds = watch.rounds(f"steps with {loss}", turns)
        for label, layers in watch.layers.items():
            row: Record = {"forget_loss": loss, "layers": label, "indices": list(layers)}
            row |= {name: seconds[name, label] for name in EDITED} | {name: seconds[name, ""] for name in FINE_TUNED}
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


def evaluation(watch: Stopwatch) -> Record:
    """One trained module: evaluated naively, and with all that can be reused, at one threshold and at 21."""
    adapted = watch.config.adapter.attach(watch.model, watch.config.seed)
    assert isinstance(adapted, EditedModel)
    adapted.use_prefix_caching(watch.caching("evaluation"))
    watch.train(adapted, LOSSES[0], watch.config.training.num_epochs, watch.data)
    naive, splits = adapted.on_plain_path(), watch.data.evaluation

    def asking(model: Adapted, decode_all: bool = False) -> Asking:
        return Asking(adapted=model, template=watch.template, config=watch.config.evaluation, decode_all=decode_all)

    base_s, base = timed(lambda: evaluate(asking(PlainModel(watch.model)), splits))

    def reused(*thresholds: float) -> list[list[Record]]:
        return evaluate_thresholds(asking(adapted), splits, thresholds, base)

    def plainly(threshold: float) -> list[Record]:
        set_gate_threshold(naive, threshold)
        return evaluate(asking(naive, decode_all=True), splits)

    first_s, (soft,) = timed(lambda: reused(0.0))
    # The threshold that shuts every gate off the forget set, whatever it does to the forget set itself.
    shut = math.nextafter(max(gate for row in soft if row["split"] != "forget" for gate in row["gate"]), math.inf)
    forget = [row for row in soft if row["split"] == "forget"]
    contenders: dict[str, Callable[[], Any]] = {
        "naive": lambda: plainly(0.0),
        "naive_shut": lambda: plainly(shut),
        "reused": lambda: reused(0.0),
        "reused_shut": lambda: reused(shut),
        "reused_curve": lambda: reused(*CURVE),
    }
    return {
        "items": len(soft),
        "base_model_s": base_s,
        "reused_empty_cache_s": first_s,
        "shut_threshold": shut,
        "forget_prompts_open_at_shut": sum(max(row["gate"]) >= shut for row in forget) / len(forget),
        **watch.rounds("evaluation", {name: partial(_once, each) for name, each in contenders.items()}),
    }


def _once(call: Callable[[], Any]) -> list[float]:
    return [timed(call)[0]]


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
    """Trials on the engine, against naive ones and against one full fine-tuning run."""
    trials = [replace(watch.config, seed=seed) for seed in range(watch.effort.num_trials)]
    where = {name: replace(watch.execution, results=watch.scratch / name) for name in ("engine", "naive", "full")}
    where["naive"] = replace(where["naive"], engine="plain")
    references_s = [timed(partial(run_prerequisites, watch.config, each))[0] for each in where.values()]
    seconds: dict[str, list[float]] = {"engine": [], "naive": []}
    for done, trial in enumerate(trials, start=1):
        for name in ("engine", "naive") if done % ENGINE_TRIALS_PER_NAIVE == 0 or len(trials) == 1 else ("engine",):
            seconds[name] += _once(partial(run, trial, where[name], gate_thresholds=SWEEP_THRESHOLDS))
        watch.progress("sweep", done, len(trials))
    return {
        "trials": len(trials),
        "gate_thresholds": len(SWEEP_THRESHOLDS),
        "naive_trials_run": len(seconds["naive"]),
        "references_s": statistics.median(references_s),
        "engine_s": sum(seconds["engine"]),
        "naive_s": statistics.mean(seconds["naive"]) * len(trials),
        "full_s": timed(partial(run, watch.changed({"adapter": "full"}), where["full"]))[0],
    }
