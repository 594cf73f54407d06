"""The item's own answer: what is to be unsaid."""

from grun.data import Example
from grun.targets.target import ForgetSet


def own_answers(forget: ForgetSet) -> list[list[Example]]:
    """One example an item."""
    return [[item.example(forget.template)] for item in forget.items]
