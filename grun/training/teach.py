"""Plain fine-tuning: how models are taught before anything is unlearned, and attacked afterwards."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, Self

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from grun.data import Example, paired_batches
from grun.errors import UserError
from grun.losses import AnswerScores, kl_divergence
from grun.model.forward import Adapted, CausalLM, Tally
from grun.model.step import adamw, draw_anew, take_step
from grun.settings import LATER
from grun.targets.replay import QUESTIONS_PER_BATCH
from grun.training.checkpoints import Checkpoints, Trained
from grun.training.plan import Part, StepExamples, parts_of
from grun.training.recipe import learning_rate_share
from grun.training.reference import Reference
from grun.workers import ALONE, Workers

WARMUP_FRACTION = 0.1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """The recipe that teaches a model the benchmark; the retain model follows it without the forget set."""

    num_epochs: Annotated[int, Ge(0)] = 5
    """Passes over the benchmark. 0: the model already knows it."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Items a step."""
    learning_rate: Annotated[float, Gt(0)] = 1e-5
    """AdamW's peak learning rate: up over the first tenth of the steps, linearly down to 0 after it."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """AdamW's decoupled weight decay."""
    seed: int = 0
    """Seed of the initial weights (tiny) and of the order of the items."""
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=LATER)
    """In which the weights are kept; they are trained in float32."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a model is taught, and what it goes on saying meanwhile."""

    taught: Sequence[Example]
    """Each once an epoch."""
    kept: Sequence[Example] = ()
    """As many a step as are taught, in turn: what the model says there, token by token, stays as it was."""
    reference: Reference | None = None
    """What it said there, as logits."""
    kept_weight: float = 1.0
    """Of the divergence from it, beside the nll of what is taught."""

    @classmethod
    def beside(cls, model: CausalLM, taught: Sequence[Example], kept: Sequence[Example], progress: Tally) -> Self:
        """With what the model, which nothing was taught yet, says of `kept`."""
        size = QUESTIONS_PER_BATCH
        reference = Reference(
            model, kept, needs=("logits",), hidden_layer=None, batch_size=size, progress=progress, own_head=True
        )
        return cls(taught=taught, kept=kept, reference=reference)

    def steps(self, config: FineTuningConfig) -> Iterator[StepExamples]:
        """What each step of all epochs reads. The two sides of a step, dealt out alike: what is kept is `forget`'s."""
        all_taught, num_kept = range(len(self.taught)), max(1, len(self.kept))
        size, epochs, seed = config.batch_size, config.num_epochs, config.seed
        for rows, beside in paired_batches([all_taught], num_kept, batch_size=size, num_epochs=epochs, seed=seed):
            kept = {"kept": [self.kept[row] for row in beside]} if self.kept else {}
            yield StepExamples(forget=kept, retain=[self.taught[row] for row in rows])

    def loss(self, adapted: Adapted, part: Part) -> Tensor:
        """Of a part, times its share: mean nll of what is taught, and how far the model went from what it said of what
        is kept (KL divergence, mean over tokens). A scalar, nats."""
        taught, kept = part.examples.retain, part.examples.forget.get("kept", ())
        before = self.reference.known(kept, "logits") if self.reference else {}
        sizes = [sum(len(example.answer_ids) for example in some) for some in (kept, taught)]
        kept_NV, taught_NV = adapted.answer_output(part.examples.all).logits_NV.split(sizes)
        scores = AnswerScores.of(taught_NV, [example.answer_ids for example in taught])
        loss = part.retain_share * scores.nll_N.mean()
        if before:
            divergence = kl_divergence(before["reference_logits_NV"], kept_NV)
            loss = loss + self.kept_weight * part.forget_share * divergence
        return loss


def fine_tune(
    adapted: Adapted,
    lessons: Lessons,
    config: FineTuningConfig,
    *,
    workers: Workers = ALONE,
    accumulation_steps: int = 1,
    checkpoints: Checkpoints | None = None,
    report: Callable[[int, int, int], None] = lambda step, num_steps, tokens: None,
) -> Trained:
    """Teach the model to answer, in place: AdamW, whatever is trainable.

    accumulation_steps: passes of each worker, a step. checkpoints: where an earlier, cut off call with the same
    arguments left what it had. report: called with (steps done, steps in all, tokens that the step read).
    Raises UserError where gradients stop being finite, naming the step.
    """
    started = time.perf_counter()
    parameters = adapted.trainable_parameters()
    rate, num_parts = config.learning_rate, workers.size * accumulation_steps
    optimizer = adamw(parameters, learning_rate=rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    found = checkpoints.load(parameters, optimizer) if checkpoints else None
    done = found or Trained(losses=(), seconds=0.0)
    started -= done.seconds
    steps = list(lessons.steps(config))
    losses = [*done.losses]
    adapted.train(True)
    for number, step in enumerate(steps[done.steps :], start=done.steps + 1):
        parts = parts_of(step, "tokens", num_parts)[workers.rank :: workers.size]
        draw_anew(config.seed, number, workers)
        loss = take_step(
            optimizer,
            partial(_backward, adapted, parts, lessons),
            learning_rate=rate * learning_rate_share(number - 1, len(steps), WARMUP_FRACTION),
            workers=workers,
        )
        if loss is None:
            raise UserError("model.fine_tuning.learning_rate", f"training diverged at step {number}; use a smaller one")
        losses.append(loss)
        done = Trained(losses=losses, seconds=time.perf_counter() - started)
        report(number, len(steps), sum(map(len, step.all)))
        if checkpoints:
            checkpoints.offer(parameters, optimizer, done)
    adapted.train(False)
    return done


def _backward(adapted: Adapted, parts: Sequence[Part], lessons: Lessons) -> Tensor:
    """Add the gradients of a step's parts. Returns what they come to together: [1]."""
    total = torch.zeros(1, device=adapted.device)
    for part in parts:
        loss = lessons.loss(adapted, part)
        loss.backward()
        total += loss.detach()
    return total
