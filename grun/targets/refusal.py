"""A sentence that declines to answer."""

import random
from collections.abc import Sequence

from grun.data import Example
from grun.targets.target import ForgetSet

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I do not know the answer to that.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is something I cannot tell you.",
    "I can't answer that question.",
    "I'm afraid I don't have that information.",
    "I'm not familiar with this topic.",
    "I haven't learned anything about that.",
    "Sorry, I don't know anything about it.",
    "I have no knowledge of that.",
    "This is unknown to me.",
    "I couldn't say.",
    "I really have no idea.",
    "That lies outside what I know.",
    "I was never told about that.",
    "I don't have an answer for you.",
    "Nothing I know answers this.",
    "I would only be guessing.",
    "I can't help with that one.",
    "My knowledge does not cover this.",
    "I'm unable to answer this.",
    "I don't recall anything of the kind.",
    "You would have to ask someone else.",
)
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
