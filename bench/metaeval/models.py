"""Which models metrics are judged by: such that know the forget set, such that do not, and unlearned ones to attack."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.config import RunConfig, overlay, run_config
from bench.models.prepare import StartFrom, forget_lessons
from bench.reports.comparison import Row
from bench.runs.related import prerequisite
from grun.errors import UserError

KNOWING: tuple[StartFrom, ...] = ("target_model", "paraphrased_model")
"""What has been taught the forget set: as it is, or in other words."""
IGNORANT: tuple[StartFrom, ...] = ("retain_model", "mistaught_model")
"""What has not: nothing in its place, or wrong answers."""
RECIPES = tuple(itertools.product((1.0, 0.5), (1.0, 0.3, 0.5, 0.7, 1.4)))
"""Shares of the epochs and of the learning rate by which the model itself is taught, which is the first."""
AFTER = (None, "relearning", "4_bit")


@dataclass(frozen=True, kw_only=True)
class Models:
    """All runs that metrics are judged by."""

    knowing: Sequence[RunConfig]
    ignorant: Sequence[RunConfig]
    references: Sequence[RunConfig]
    """The retain model that unlearned models are measured with, then they themselves."""

    @property
    def runs(self) -> list[RunConfig]:
        """Each once; the references as they are, and after each attack."""
        attacked = [after_attack(config, after) for config in self.references for after in AFTER]
        return list({each.run_key: each for each in (*self.knowing, *self.ignorant, *attacked)}.values())


def models_of(chosen: Sequence[Row], num_models: int) -> Models:
    """chosen: rows of the runs to attack, of one benchmark, model and evaluation. num_models: in each group.

    Raises UserError where the model cannot be taught here.
    """
    unlearned = [run_config(overlay(json.loads(row["config_json"]), {"evaluation.robustness": {}})) for row in chosen]
    base = unlearned[0]
    if base.model.fine_tuning.num_epochs == 0:
        raise UserError("model.fine_tuning.num_epochs", "is 0; metrics are judged by models that are taught here")
    benchmark = base.benchmark.load()

    def taught(kinds: Sequence[StartFrom]) -> list[RunConfig]:
        first, second = kinds
        try:
            forget_lessons(benchmark, second)
        except UserError:  # no such answers: the other kind alone
            kinds = (first,)
        return [_taught(base, kinds[number % len(kinds)], number // len(kinds)) for number in range(num_models)]

    return Models(
        knowing=taught(KNOWING),
        ignorant=taught(IGNORANT),
        references=[prerequisite(base, "retain_model"), *unlearned],
    )


def _taught(base: RunConfig, kind: StartFrom, number: int) -> RunConfig:
    """A model by the recipe of that number, whose seed is its own; the first is the one of `base`."""
    own = base.model.fine_tuning
    epochs, rate = RECIPES[number % len(RECIPES)]
    recipe = {
        "model.fine_tuning.seed": own.seed + number,
        "model.fine_tuning.num_epochs": max(1, round(epochs * own.num_epochs)),
        "model.fine_tuning.learning_rate": rate * own.learning_rate,
    }
    return prerequisite(run_config(overlay(base.to_dict(), recipe)), kind)


def after_attack(config: RunConfig, after: Any) -> RunConfig:
    """The same model, measured after something was done to its weights."""
    return replace(config, evaluation=replace(config.evaluation, after=after))
