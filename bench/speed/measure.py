"""The measurements: contenders take turns in every round, so that whatever slows the machine slows them all."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

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
from bench.speed.contenders import EDITED, FINE_TUNED, best_ratio, contender
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.engine.edited import EditedModel, PrefixCaching
from grun.errors import UserError
from grun.model.forward import Adapted, CausalLM, PlainModel
from grun.model.layers import layer_indices
from grun.training.recipe import Recipe
from grun.training.unlearn import unlearn

Record = dict[str, Any]
LOSSES = ("grad_ascent", "npo")
CURVE = tuple(position / 20 for position in range(21))
"""Gate thresholds of the curve."""
SWEEP_THRESHOLDS = (0.0, 0.5, 0.9)
"""Gate thresholds of each trial of the sweep, as in search_spaces/demo_grun.yaml."""
ENGINE_TRIALS_PER_NAIVE = 4
"""Naive trials are slow: one for every so many of the engine's, their seconds scaled up."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long is measured."""

    rounds: int
    """Turns of every contender."""
    steps: int
    """Timed steps a turn; one more before them is not counted."""
    trials: int
    """Trials of the sweep; 0: no sweep."""


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
        bench = _Bench(config, execution, effort, Path(folder), progress)
        record: Record = {"machine": bench.machine(), "effort": dataclasses.asdict(effort), "config": config.to_dict()}
        sections = {
            "steps": bench.steps,
            "cache": bench.cache,
            "evaluation": bench.evaluation,
            "memory": bench.memory,
            **({"sweep": bench.sweep} if effort.trials else {}),
        }
        for name, section in sections.items():
            record[name] = section()
            save(record)
    return record


class _Bench:
    """One model, one benchmark, one machine."""

    def __init__(
        self, config: RunConfig, execution: Execution, effort: Effort, scratch: Path, progress: Progress
    ) -> None:
        self.config, self.execution, self.effort, self.progress = config, execution, effort, progress
        self.scratch = scratch
        self.subject = Subject(config=config, execution=execution, progress=progress)
        self.data, self.device = self.subject.benchmark, self.subject.device
        self.model, self.template = self.subject.model, self.subject.template
        timed_items = config.training.batch_size * (effort.steps + 1)
        self.timed = dataclasses.replace(
            self.data, forget_set=self.data.forget_set[:timed_items], retain_set=self.data.retain_set[:timed_items]
        )

    def model_for(self, adapter: str) -> CausalLM:
        """The target model anew, as a run with that adapter opens it."""
        config = run_config(overlay(self.config.to_dict(), {"adapter": adapter}))
        return Subject(config=config, execution=self.execution).model

    def caching(self, name: str) -> PrefixCaching:
        """An empty place for prefixes, the same for the same name."""
        return PrefixCaching(root=self.scratch / name, max_bytes=10**12, log=print)

    def machine(self) -> Record:
        """What it runs on."""
        return {
            "device": costs.device_name(self.device),
            "num_threads": torch.get_num_threads(),
            "versions": costs.versions(),
            "git_sha": costs.git_sha(),
        }

    def layer_sets(self) -> dict[str, tuple[int, ...]]:
        """Edited layers by name."""
        num_layers = self.model.config.get_text_config().num_hidden_layers
        return {
            "at 60, 80, 100 % depth": layer_indices((0.6, 0.8, 1.0), num_layers),
            "the last three": tuple(range(num_layers - 3, num_layers)),
        }

    def steps(self) -> list[Record]:
        """Seconds of a training step of every contender, and what the engine could reach at best."""
        label_of_rivals = ""
        rows = []
        for loss in LOSSES:
            own_models = {name: self.model_for(name) for name in FINE_TUNED}
            contenders = {
                (label_of_rivals, name): contender(name, self.config, model, (), loss, self.caching("steps"))
                for name, model in own_models.items()
            }
            for label, layers in self.layer_sets().items():
                for name in EDITED:
                    contenders[label, name] = contender(
                        name, self.config, self.model, layers, loss, self.caching("steps")
                    )
            seconds: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
            for turn in range(self.effort.rounds):
                for place, (key, adapted) in enumerate(contenders.items(), start=1):
                    seconds[key] += self._step_seconds(adapted, loss)
                    total = self.effort.rounds * len(contenders)
                    self.progress(f"steps with {loss}", turn * len(contenders) + place, total)
            for label, layers in self.layer_sets().items():
                row: Record = {"forget_loss": loss, "layers": label, "indices": list(layers)}
                row |= {name: _spread(seconds[label, name]) for name in EDITED}
                row |= {name: _spread(seconds[label_of_rivals, name]) for name in FINE_TUNED}
                row["best_ratio"] = best_ratio(
                    self.model,
                    [item.example(self.template) for item in self.timed.forget_set],
                    [item.example(self.template) for item in self.timed.retain_set],
                    first_layer=min(layers),
                    reads_reference=loss == "npo",
                )
                rows.append(row)
        return rows

    def cache(self) -> Record:
        """What building a training cache costs, and what the next process pays to find it."""
        layers = self.layer_sets()["at 60, 80, 100 % depth"]
        examples = [item.example(self.template) for item in [*self.timed.forget_set, *self.timed.retain_set]]
        caching = self.caching("cache")
        seconds = []
        for _ in range(2):
            adapted = contender("engine", self.config, self.model, layers, "grad_ascent", caching)
            started = time.perf_counter()
            adapted.prepare(examples, generate=False, progress=partial(self.progress, "prefix cache"))
            seconds.append(time.perf_counter() - started)
        naive = contender("hooks", self.config, self.model, layers, "grad_ascent", caching)
        step_s = statistics.median(self._step_seconds(naive, "grad_ascent"))
        return {
            "items": len(examples),
            "build_s_per_item": seconds[0] / len(examples),
            "naive_epoch_s_per_item": step_s / (2 * self.config.training.batch_size),
            "mb_per_item": sum(f.stat().st_size for f in caching.root.rglob("*.safetensors")) / 1e6 / len(examples),
            "second_open_s": seconds[1],
        }

    def evaluation(self) -> Record:
        """One trained module: evaluated naively, and with all that can be reused, at one threshold and at 21."""
        adapted = self.config.adapter.attach(self.model, self.config.seed)
        naive = self.config.adapter.attach(self.model, self.config.seed)
        assert isinstance(adapted, EditedModel)
        assert isinstance(naive, EditedModel)
        adapted.use_prefix_caching(self.caching("evaluation"))
        self._train(adapted, "grad_ascent", self.config.training.num_epochs, self.data)
        naive.edits.load_state_dict(adapted.edits.state_dict())
        naive.train(False)
        splits, settings = self.data.evaluation, self.config.evaluation

        def asking(model: Adapted, decode_all: bool = False) -> Asking:
            return Asking(adapted=model, template=self.template, config=settings, decode_all=decode_all)

        base_s, base = _timed(lambda: evaluate(asking(PlainModel(self.model)), splits))

        def reused(*thresholds: float) -> list[list[Record]]:
            return evaluate_thresholds(asking(adapted), splits, thresholds, base)

        def plainly(threshold: float) -> list[Record]:
            set_gate_threshold(naive, threshold)
            return evaluate(asking(naive, decode_all=True), splits)

        first_s, (soft,) = _timed(lambda: reused(0.0))
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
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(1, self.effort.rounds + 1):
            for name, each in contenders.items():
                seconds[name].append(_timed(each)[0])
            self.progress("evaluation", turn, self.effort.rounds)
        return {
            "items": len(soft),
            "base_model_s": base_s,
            "reused_empty_cache_s": first_s,
            "shut_threshold": shut,
            "forget_prompts_open_at_shut": sum(max(row["gate"]) >= shut for row in forget) / len(forget),
        } | {name: _spread(values) for name, values in seconds.items()}

    def memory(self) -> Record:
        """Resident or GPU memory of each contender in a process of its own: before its first step, and at its peak."""
        names = (*EDITED, *FINE_TUNED)
        peaks: Record = {}
        for done, name in enumerate(names, start=1):
            # A process of its own, gone after one task: its peak is the contender's own.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(_memory_gb, self.config, self.execution, self.scratch, name)
                peaks[name] = dict(zip(("before_gb", "peak_gb"), job.result(), strict=True))
            self.progress("memory", done, len(names))
        return peaks

    def sweep(self) -> Record:
        """Trials on the engine, against naive ones and against one full fine-tuning run."""
        trials = [dataclasses.replace(self.config, seed=seed) for seed in range(self.effort.trials)]
        full = run_config(overlay(self.config.to_dict(), {"adapter": "full"}))
        where = {name: dataclasses.replace(self.execution, results=self.scratch / name) for name in ("engine", "full")}
        where["naive"] = dataclasses.replace(self.execution, results=self.scratch / "naive", engine="plain")
        references_s = {name: _timed(partial(run_prerequisites, self.config, each))[0] for name, each in where.items()}
        seconds: dict[str, list[float]] = {"engine": [], "naive": []}
        for done, trial in enumerate(trials, start=1):
            for name in ("engine", "naive") if done % ENGINE_TRIALS_PER_NAIVE == 0 or len(trials) == 1 else ("engine",):
                train = partial(run, trial, where[name], gate_thresholds=SWEEP_THRESHOLDS)
                seconds[name].append(_timed(train)[0])
            self.progress("sweep", done, len(trials))
        return {
            "trials": len(trials),
            "gate_thresholds": len(SWEEP_THRESHOLDS),
            "naive_trials_run": len(seconds["naive"]),
            "references_s": statistics.median(references_s.values()),
            "engine_s": sum(seconds["engine"]),
            "naive_s": statistics.mean(seconds["naive"]) * len(trials),
            "full_s": _timed(partial(run, full, where["full"]))[0],
        }

    def _step_seconds(self, adapted: Adapted, loss: str) -> list[float]:
        """Seconds of each step but the first."""
        steps_an_epoch = math.ceil(len(self.timed.forget_set) / self.config.training.batch_size)
        num_epochs = math.ceil((self.effort.steps + 1) / steps_an_epoch)
        stamps = self._train(adapted, loss, num_epochs, self.timed)
        return [after - before for before, after in pairwise(stamps)]

    def _train(self, adapted: Adapted, loss: str, num_epochs: int, data: Benchmark) -> list[float]:
        """Unlearn; returns when each step ended."""
        changes = {"forget_loss": loss, "training.num_epochs": num_epochs}
        config = run_config(overlay(self.config.to_dict(), changes))
        assert isinstance(config.adapter, GrunConfig)
        plan, reference = plan_of(config, self.subject, data)
        recipe = dataclasses.replace(Recipe.of(config), gate_warmup_steps=0)
        if not isinstance(adapted, EditedModel):
            recipe = dataclasses.replace(recipe, learning_rate=1e-5)
        stamps: list[float] = []
        unlearn(adapted, plan, recipe, reference, report=lambda step: stamps.append(time.perf_counter()))
        return stamps


def _memory_gb(config: RunConfig, execution: Execution, scratch: Path, name: str) -> tuple[float, float]:
    """In a fresh process: memory before the first step of a contender, and the peak of two of them."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own future
    bench = _Bench(config, execution, Effort(rounds=1, steps=1, trials=0), scratch, quiet)
    layers = bench.layer_sets()["at 60, 80, 100 % depth"]
    if name in FINE_TUNED:
        bench.model = bench.model_for(name)
    adapted = contender(name, config, bench.model, layers, "grad_ascent", bench.caching("steps"))
    costs.reset_peak_memory(bench.device)
    before = costs.peak_memory_gb(bench.device)
    bench._step_seconds(adapted, "grad_ascent")
    return before, costs.peak_memory_gb(bench.device)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _spread(seconds: Sequence[float]) -> Record:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "count": len(seconds)}
