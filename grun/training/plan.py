"""What every step of a run trains on, settled before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grun.data import Example, PromptTemplate, paired_batches
from grun.refusals import refusals_of
from grun.workers import ALONE, Workers

Target = Literal["answer", "refusal"]
Unit = Literal["tokens", "sequences"]
"""What a forget loss is a mean over."""


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
class Part:
    """What is done of a step in one pass. The losses of its parts, each times its share, add up to the step's."""

    examples: StepExamples
    forget_share: float
    retain_share: float
    gate_share: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All steps of a run, as far as they fall to one worker."""

    steps: Sequence[Sequence[Part]]
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
    mean_over: Unit,
    workers: Workers = ALONE,
    accumulation_steps: int = 1,
) -> Plan:
    """An epoch is one pass over the forget set.

    answers: each forget item with its own answer; empty where the loss does not look at them.
    refusals: each forget item with some refusals, one an epoch in turn; empty likewise.
    batch_size: forget items a step, of all workers and passes together.
    mean_over: the forget loss's own. accumulation_steps: passes of each worker, a step.
    """
    num_forget = len(answers) or len(refusals)
    num_steps = math.ceil(num_forget / batch_size) * num_epochs
    steps = []
    pairs = paired_batches(num_forget, len(retain), batch_size=batch_size, num_epochs=num_epochs, seed=seed)
    for step, (forget_rows, retain_rows) in enumerate(pairs):
        epoch = step * num_epochs // num_steps
        whole = StepExamples(
            answers=[answers[row] for row in forget_rows if answers],
            refusals=[refusals[row][epoch % len(refusals[row])] for row in forget_rows if refusals],
            retain=[retain[row] for row in retain_rows],
        )
        parts = _parts(whole, mean_over, workers.size * accumulation_steps)
        steps.append(parts[workers.rank :: workers.size])
    return Plan(steps=steps, forget=[*answers, *(example for own in refusals for example in own)], retain=retain)


def _parts(step: StepExamples, mean_over: Unit, num_parts: int) -> list[Part]:
    """Items dealt out in turn. Where there are more parts than items, the rest do the first item for nothing."""
    parts = []
    for number in range(num_parts):
        is_empty = number >= len(step.retain)
        chosen = slice(0, 1) if is_empty else slice(number, None, num_parts)
        part = StepExamples(answers=step.answers[chosen], refusals=step.refusals[chosen], retain=step.retain[chosen])
        of_items = len(part.retain) / len(step.retain)
        of_forget_tokens = _num_tokens([*part.answers, *part.refusals]) / _num_tokens([*step.answers, *step.refusals])
        of_retain_tokens = _num_tokens(part.retain) / _num_tokens(step.retain)
        parts.append(
            Part(
                examples=part,
                forget_share=0.0 if is_empty else of_items if mean_over == "sequences" else of_forget_tokens,
                retain_share=0.0 if is_empty else of_retain_tokens,
                gate_share=0.0 if is_empty else of_items,
            )
        )
    return parts


def _num_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.answer_ids) for example in examples)


def refusal_examples(template: PromptTemplate, questions: Sequence[str]) -> list[list[Example]]:
    """Each question with the few refusals that it is taught."""
    return [
        [template.example(question, refusal) for refusal in refusals_of(row)] for row, question in enumerate(questions)
    ]
