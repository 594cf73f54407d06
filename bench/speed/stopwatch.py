"""What every measurement takes turns on: one model, one benchmark, one machine, and a clock."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig, overlay, run_config
from bench.progress import Progress
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from bench.runs.training import plan_of
from bench.speed import Effort
from bench.speed.contenders import FINE_TUNED, edited
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.lm.layers import layer_indices
from grun.model.forward import Adapted
from grun.training.unlearn import unlearn
from pyvene_custom.editing import Edits

Record = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)
LOSSES = ("grad_ascent", "npo")
DEPTHS = "at 60, 80, 100 % depth"
"""The edited layers that everything but the steps is timed with."""


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

    def contender(
        self, name: str, loss: str, layers: tuple[int, ...], cache: str = "steps", edits: Edits = "prompt_end"
    ) -> Adapted:
        """One of EDITED or FINE_TUNED; the latter on the target model anew, as a run with that adapter opens it.

        cache: the same name is the same place for prefixes, empty at first. edits: of EDITED.
        """
        if name in FINE_TUNED:
            return Subject(config=self.changed({"adapter": name}), execution=self.execution).attached()
        config = self.changed({"adapter.edits": edits})
        return edited(name, config, self.model, layers, loss, self.caching(cache))

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


def once(call: Callable[[], Any]) -> list[float]:
    """Seconds, as a turn of one."""
    return [timed(call)[0]]
