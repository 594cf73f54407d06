"""What every step of a run trains on, settled before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grun.data import Example, PromptTemplate, paired_batches
from grun.refusals import refusals_of

Target = Literal["answer", "refusal"]


@dataclass(frozen=True, kw_only=True)
class StepExamples:
    """One step: F forget items, each with the targets that the forget loss looks at, and F retain items."""

    answers: Sequence[Example]
    """The forget items with their own answers; empty where the loss does not look at them."""
    refusals: Sequence[Example]
    """The same items with a refusal each; empty where the loss does not look at them."""
    retain: Sequence[Example]

    @property
    def all(self) -> list[Example]:
        """In the order of a forward pass."""
        return [*self.answers, *self.refusals, *self.retain]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All steps of a run."""

    steps: Sequence[StepExamples]
    forget: Sequence[Example]
    """All that any seed could train on, so that runs share what is computed of it."""
    retain: Sequence[Example]


def plan_steps(
    answers: Sequence[Example],
    refusals: Sequence[Sequence[Example]],
    retain: Sequence[Example],
    *,
    batch_size: int,
    num_epochs: int,
    seed: int,
) -> Plan:
    """An epoch is one pass over the forget set.

    answers: each forget item with its own answer; empty where the loss does not look at them.
    refusals: each forget item with some refusals, one an epoch in turn; empty likewise.
    """
    num_forget = len(answers) or len(refusals)
    num_steps = math.ceil(num_forget / batch_size) * num_epochs
    steps = []
    pairs = paired_batches(num_forget, len(retain), batch_size=batch_size, num_epochs=num_epochs, seed=seed)
    for step, (forget_rows, retain_rows) in enumerate(pairs):
        epoch = step * num_epochs // num_steps
        steps.append(
            StepExamples(
                answers=[answers[row] for row in forget_rows if answers],
                refusals=[refusals[row][epoch % len(refusals[row])] for row in forget_rows if refusals],
                retain=[retain[row] for row in retain_rows],
            )
        )
    return Plan(steps=steps, forget=[*answers, *(example for own in refusals for example in own)], retain=retain)


def refusal_examples(template: PromptTemplate, questions: Sequence[str]) -> list[list[Example]]:
    """Each question with the few refusals that it is taught."""
    return [
        [template.example(question, refusal) for refusal in refusals_of(row)] for row, question in enumerate(questions)
    ]
