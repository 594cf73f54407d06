"""What a target is, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from grun.data import Example
from grun.errors import UserError
from grun.model.forward import CausalLM
from grun.prompts.template import PromptTemplate


class ForgetItem(Protocol):
    """One thing to be forgotten, as a benchmark hands it over."""

    @property
    def question(self) -> str:
        """What is asked."""

    @property
    def answer(self) -> str:
        """What is to be forgotten of it."""

    @property
    def form(self) -> str:
        """`question`, or what else question and answer are (see `bench.benchmarks.items.Item`)."""

    def example(self, template: PromptTemplate, answer: str | None = None) -> Example:
        """As token ids. answer: another one than its own."""


Texts = list[list[str]]
"""Some for each item, in the order of the items."""


@dataclass(frozen=True, kw_only=True)
class ForgetSet:
    """All there is to make a target of."""

    items: Sequence[ForgetItem]
    template: PromptTemplate
    model: CausalLM
    """Before an adapter is attached."""
    keep: Callable[[str, Callable[[], Texts]], Texts] = lambda name, make: make()
    """(name, what makes them) → texts of the model's own, made once and then the same for whoever trains on these items
    again: another worker, a training that goes on, the next trial."""

    def check_asks(self, verb: str) -> None:
        """Raises UserError where an item asks nothing. verb: what a forget loss does that needs a question."""
        if any(item.form != "question" for item in self.items):
            raise UserError("forget_loss", f"{verb}, and the benchmark's forget set asks nothing; use another")

    def examples(self, targets: Mapping[str, Target]) -> dict[str, list[list[Example]]]:
        """Target → each item's examples. Raises UserError where the items cannot be made to say it."""
        return {name: target(self) for name, target in targets.items()}


Target = Callable[[ForgetSet], list[list[Example]]]
"""Gives each item's examples, in the order of the items: one or more, used one an epoch in turn.

Few, so that what a frozen model makes of them can be computed once (see `grun.engine.prefix_cache`).
"""
