"""What every step of a run trains on, settled before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from grun.data import Example, paired_batches
from grun.errors import UserError
from grun.losses import Unit, num_units
from grun.training.recipe import Recipe
from grun.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class StepExamples:
    """One step: F forget items, each with every target that the forget loss looks at, and F retain items."""

    forget: Mapping[str, Sequence[Example]]
    """Target → what each of the forget items is made to say."""
    retain: Sequence[Example]

    @property
    def all(self) -> list[Example]:
        """In the order of a forward pass."""
        return [*chain(*self.forget.values()), *self.retain]

    def part(self, chosen: slice) -> StepExamples:
        """Some of the items."""
        return StepExamples(
            forget={target: examples[chosen] for target, examples in self.forget.items()}, retain=self.retain[chosen]
        )


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
    workers: Workers
    """Among whom the steps were dealt out, this process one of them."""
    forget: Sequence[Example]
    """All that any seed could train on, so that runs share what is computed of it."""
    retain: Sequence[Example]
    keep: Sequence[Example] = ()
    """Further prompts that gates in closed form are to stay shut for."""
    held_back: Sequence[Example] = ()
    """What is kept likewise, and nothing is trained on or fitted to."""
    relearned: Sequence[Example] = ()
    """Questions and answers that an attacker has, where the recipe is against one."""


def plan_steps(
    recipe: Recipe,
    forget: Mapping[str, Sequence[Sequence[Example]]],
    retain: Sequence[Example],
    *,
    corpora: Sequence[str] | None = None,
    workers: Workers = ALONE,
    accumulation_steps: int = 1,
) -> Plan:
    """An epoch is one pass over the forget set.

    corpora: of each forget item, the corpus it is from, if steps are to be of one corpus each (`corpora_in_turn`).
    forget: target → each forget item's examples, one an epoch in turn (see `grun.targets.target.ForgetSet.examples`).
    accumulation_steps: passes of each worker, a step; the batch size is that of all workers and passes together.
    """
    training = recipe.training
    retain, held_back = (retain, ()) if recipe.max_false_openings is None else hold_back(retain)
    if recipe.retain_loss.positions == "all":
        retain = _all_said(retain)
    if recipe.forget_loss.positions == "all":
        forget = {target: [_all_said(item) for item in items] for target, items in forget.items()}
    num_forget = len(next(iter(forget.values())))
    pairs = [
        *paired_batches(
            _groups(corpora if training.corpora_in_turn else None, num_forget),
            len(retain),
            batch_size=training.batch_size,
            num_epochs=training.num_epochs,
            seed=recipe.seed,
            fixed=training.fixed_partners,
        )
    ]
    steps = []
    for step, (forget_rows, retain_rows) in enumerate(pairs):
        epoch = step * training.num_epochs // len(pairs)
        whole = StepExamples(
            forget={
                target: [items[row][epoch % len(items[row])] for row in forget_rows] for target, items in forget.items()
            },
            retain=[retain[row] for row in retain_rows],
        )
        parts = parts_of(whole, recipe.forget_loss.mean_over, workers.size * accumulation_steps)
        steps.append(parts[workers.rank :: workers.size])
    return Plan(
        steps=steps,
        workers=workers,
        forget=[example for items in forget.values() for example in chain(*items)],
        retain=retain,
        held_back=held_back,
    )


def _all_said(examples: Sequence[Example]) -> list[Example]:
    return [example.from_its_second_token() for example in examples]


def _groups(corpora: Sequence[str] | None, num_items: int) -> list[Sequence[int]]:
    """Items that share steps."""
    if corpora is None:
        return [range(num_items)]
    return [[row for row in range(num_items) if corpora[row] == name] for name in dict.fromkeys(corpora)]


def hold_back(retain: Sequence[Example]) -> tuple[Sequence[Example], Sequence[Example]]:
    """What is kept in two: what is trained on, and its last fifth, which is not. Of nothing: nothing.

    Not every fifth item: where those of one subject follow each other, what is held back is about other subjects then.
    Raises UserError where there are not five.
    """
    count = len(retain) // 5
    if retain and not count:
        raise UserError("adapter.max_false_openings", f"needs 5 kept items or more, and there are {len(retain)}")
    split = len(retain) - count
    return retain[:split], retain[split:]


def parts_of(step: StepExamples, mean_over: Unit, num_parts: int) -> list[Part]:
    """Items dealt out in turn. Where there are more parts than items, the rest do the first item for nothing."""
    parts = []
    for number in range(num_parts):
        is_empty = number >= len(step.retain)
        part = step.part(slice(0, 1) if is_empty else slice(number, None, num_parts))
        of_items = len(part.retain) / len(step.retain)
        in_part, in_step = (_num(chain(*some.forget.values()), mean_over) for some in (part, step))
        of_retain = _num(part.retain, "tokens") / _num(step.retain, "tokens")
        parts.append(
            Part(
                examples=part,
                forget_share=0.0 if is_empty else in_part / max(1, in_step),
                retain_share=0.0 if is_empty else of_retain,
                gate_share=0.0 if is_empty else of_items,
            )
        )
    return parts


def _num(examples: Iterable[Example], unit: Unit) -> int:
    return num_units((len(example.answer_ids) for example in examples), unit)
