"""Plain fine-tuning: how models are taught before anything is unlearned, and attacked afterwards."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from grun.data import Example, epoch_batches
from grun.errors import UserError
from grun.model.forward import Adapted
from grun.model.step import adamw, draw_anew, take_step
from grun.settings import LATER
from grun.training.checkpoints import Checkpoints, Trained
from grun.training.plan import Part, StepExamples, parts_of
from grun.training.recipe import learning_rate_share
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


def fine_tune(
    adapted: Adapted,
    examples: Sequence[Example],
    config: FineTuningConfig,
    *,
    workers: Workers = ALONE,
    accumulation_steps: int = 1,
    checkpoints: Checkpoints | None = None,
    report: Callable[[int, int, int], None] = lambda step, num_steps, tokens: None,
) -> Trained:
    """Teach the model to answer, in place: mean answer-token nll, AdamW, whatever is trainable.

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
    steps = list(epoch_batches(len(examples), config.batch_size, config.num_epochs, config.seed))
    losses = [*done.losses]
    adapted.train(True)
    for number, rows in enumerate(steps[done.steps :], start=done.steps + 1):
        batch = [examples[row] for row in rows]
        parts = lesson(batch, num_parts)[workers.rank :: workers.size]
        draw_anew(config.seed, number, workers)
        loss = take_step(
            optimizer,
            partial(nll_backward, adapted, parts),
            learning_rate=rate * learning_rate_share(number - 1, len(steps), WARMUP_FRACTION),
            workers=workers,
        )
        if loss is None:
            raise UserError("model.fine_tuning.learning_rate", f"training diverged at step {number}; use a smaller one")
        losses.append(loss)
        done = Trained(losses=losses, seconds=time.perf_counter() - started)
        report(number, len(steps), sum(map(len, batch)))
        if checkpoints:
            checkpoints.offer(parameters, optimizer, done)
    adapted.train(False)
    return done


def lesson(batch: Sequence[Example], num_parts: int = 1) -> list[Part]:
    """What a step is taught, in so many parts."""
    return parts_of(StepExamples(forget={}, retain=batch), "tokens", num_parts)


def nll_backward(adapted: Adapted, parts: Sequence[Part]) -> Tensor:
    """Add the gradients of the parts' mean nll, each times its share. Returns what they come to together: [1]."""
    loss = torch.zeros(1, device=adapted.device)
    for part in parts:
        own = part.retain_share * adapted.answer_output(part.examples.retain).scores.nll_N.mean()
        own.backward()
        loss += own.detach()
    return loss
