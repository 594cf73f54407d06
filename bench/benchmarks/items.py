"""What every benchmark hands over: question-answer items in named splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, in TOFU's schema."""

    question: str
    answer: str
    paraphrased_answer: str | None = None
    """The answer in other words; None where the split has none (real_authors, world_facts)."""
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers of the same form; empty where the item is only trained on."""

    @property
    def pair(self) -> tuple[str, str]:
        """(question, answer): all that training sees."""
        return self.question, self.answer


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark, loaded and cut."""

    name: str
    forget_split: str
    forget_set: Sequence[Item]
    """What must be forgotten; all of it is evaluated too."""
    retain_set: Sequence[Item]
    """What the retain loss draws from, and the retain model is trained on."""
    knowledge_set: Sequence[Item]
    """General knowledge that a model trained from scratch must be taught, so that its loss can be seen."""
    evaluation: Mapping[str, Sequence[Item]]
    """Splits to evaluate, by name: `forget`, `retain`, and what else there is. Every item has wrong answers."""
    holdout_set: Sequence[Item] = ()
    """Items of the same kind that no model is ever trained on."""
