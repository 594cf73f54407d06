"""A sentence that declines to answer."""

import json
import random
from collections.abc import Sequence
from importlib import resources

from grun.data import Example
from grun.targets.target import ForgetSet

REFUSALS: list[str] = json.loads(resources.files("grun.targets").joinpath("refusals.json").read_text(encoding="utf-8"))
PER_ITEM = 4


def refusals(forget: ForgetSet) -> list[list[Example]]:
    """PER_ITEM examples an item. Raises UserError where an item asks nothing."""
    forget.check_asks("refuses to answer")
    return [
        [item.example(forget.template, refusal) for refusal in refusals_of(row)]
        for row, item in enumerate(forget.items)
    ]


def refusals_of(item: int) -> Sequence[str]:
    """The few refusals that a forget item is taught, by its place in the forget set: the same in every run."""
    return random.Random(item).sample(REFUSALS, PER_ITEM)
