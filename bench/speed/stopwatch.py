"""What every measurement has: one model, one benchmark, one machine, and the steps that are timed on them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig, overlay, run_config
from bench.progress import Progress
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from bench.runs.training import plan_of
from grun.adapters.grun import GrunConfig
from grun.engine.edited import EditedModel, PrefixCaching
from grun.model.forward import Adapted, CausalLM
from grun.model.layers import layer_indices
from grun.training.recipe import Recipe
from grun.training.unlearn import unlearn

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long is measured."""

    rounds: int
    """Turns of every contender."""
    steps: int
    """Timed steps a turn; one more before them is not counted."""
    trials: int
    """Trials of the sweep; 0: no sweep."""


class Stopwatch:
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

    def step_seconds(self, adapted: Adapted, loss: str) -> list[float]:
        """Seconds of each step but the first."""
        steps_an_epoch = math.ceil(len(self.timed.forget_set) / self.config.training.batch_size)
        num_epochs = math.ceil((self.effort.steps + 1) / steps_an_epoch)
        stamps = self.train(adapted, loss, num_epochs, self.timed)
        return [after - before for before, after in pairwise(stamps)]

    def train(self, adapted: Adapted, loss: str, num_epochs: int, data: Benchmark) -> list[float]:
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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def spread(seconds: Sequence[float]) -> Record:
    """Median, smallest, largest, and how many."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "count": len(seconds)}
