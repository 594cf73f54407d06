"""THE training loop: every adapter with every forget loss goes through it.

Shapes: F forget sequences, B all sequences of a step (forget first, then retain), K edited layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from grun.data import Example, PromptTemplate, length_sorted_batches, paired_batches
from grun.errors import UserError
from grun.forget_losses import ForgetLossConfig
from grun.forward import Adapted
from grun.losses import AnswerScores, gate_bce, mean_token_nll, sequence_sum, token_nll
from grun.refusals import refusals_of

RetainLoss = Literal["ce"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run of the loop. The learning rate belongs to the adapter, which knows its scale."""

    num_epochs: Annotated[int, Ge(1)] = 5
    """Passes over the forget set; every step pairs each forget item with a retain item."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Forget items a step; as many retain items come on top."""
    forget_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the forget loss."""
    retain_weight: Annotated[float, Ge(0)] | None = None
    """Weight of the retain loss. None: the paper's, 2 with grad_ascent and 1 otherwise."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's decoupled weight decay."""
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the steps over which the learning rate rises to its peak; from there it falls linearly to 0."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradients of a larger joint norm are scaled down to it."""

    def resolved(self, forget_loss: ForgetLossConfig) -> TrainingConfig:
        """The same with the paper's retain_weight filled in where it is None."""
        if self.retain_weight is not None:
            return self
        return replace(self, retain_weight=forget_loss.paper_retain_weight)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step did; handed to `report`."""

    step: int
    """From 1."""
    num_steps: int
    loss: float
    forget_loss: float
    retain_loss: float
    gate_loss: float | None


def unlearn(
    adapted: Adapted,
    *,
    template: PromptTemplate,
    forget: Sequence[tuple[str, str]],
    retain: Sequence[tuple[str, str]],
    forget_loss: ForgetLossConfig,
    training: TrainingConfig,
    learning_rate: float,
    gate_weight: float,
    gate_warmup_steps: int,
    reference_nll: Sequence[float] | None,
    seed: int,
    report: Callable[[Step], None],
    progress: Callable[[str, int, int], None],
) -> float:
    """Train what the adapter makes trainable; returns the seconds it took.

    forget, retain: (question, answer) pairs.
    reference_nll: token-summed nll of each forget answer under the untouched model, where the loss needs it.
    progress: called with (what is being prepared, done, total) before the first step.
    Raises UserError where the loss stops being finite, naming the step.
    """
    started = time.perf_counter()
    num_steps = math.ceil(len(forget) / training.batch_size) * training.num_epochs
    training = training.resolved(forget_loss)
    retain_examples = [template.example(question, answer) for question, answer in retain]
    # What each forget item is to say, by epoch in turn: its own answer, or some refusals.
    forget_examples = [
        [template.example(question, target) for target in _targets(forget_loss, row, answer)]
        for row, (question, answer) in enumerate(forget)
    ]
    for name, examples in (("forget", list(chain.from_iterable(forget_examples))), ("retain", retain_examples)):
        adapted.prepare(examples, generate=False, progress=partial(progress, f"prefix cache, {name}"))

    parameters = adapted.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_share(done, num_steps, training.warmup_fraction)
    )
    torch.manual_seed(seed)  # LoRA's dropout
    adapted.train(True)
    pairs = paired_batches(
        len(forget), len(retain), batch_size=training.batch_size, num_epochs=training.num_epochs, seed=seed
    )
    for step, (forget_rows, retain_rows) in enumerate(pairs, start=1):
        epoch = (step - 1) * training.num_epochs // num_steps
        examples = [forget_examples[row][epoch % len(forget_examples[row])] for row in forget_rows]
        examples += [retain_examples[row] for row in retain_rows]
        num_forget = len(forget_rows)

        output = adapted.answer_output(examples)
        nll_N = token_nll(output.logits_NV, output.label_N)
        nll_B = sequence_sum(nll_N, output.row_N, len(examples))
        num_tokens_B = sequence_sum(torch.ones_like(nll_N), output.row_N, len(examples))
        forget_scores = AnswerScores(
            nll_B=nll_B[:num_forget],
            num_tokens_B=num_tokens_B[:num_forget],
            reference_nll_B=(
                None
                if reference_nll is None
                else torch.tensor([reference_nll[row] for row in forget_rows], device=adapted.device)
            ),
        )
        forget_term = forget_loss(forget_scores)
        retain_term = mean_token_nll(nll_B[num_forget:], num_tokens_B[num_forget:])
        warm = min(1.0, step / gate_warmup_steps) if gate_warmup_steps else 1.0
        loss = warm * (training.forget_weight * forget_term + (training.retain_weight or 0.0) * retain_term)
        gate_term: Tensor | None = None
        if output.gate_logit_BK is not None:
            is_forget_B = torch.arange(len(examples), device=adapted.device) < num_forget
            gate_term = gate_bce(output.gate_logit_BK, is_forget_B)
            loss = loss + gate_weight * gate_term

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError(
                "adapter.learning_rate", f"training diverged at step {step} of {num_steps}; use a smaller one"
            )
        optimizer.step()
        schedule.step()
        report(
            Step(
                step=step,
                num_steps=num_steps,
                loss=loss.item(),
                forget_loss=forget_term.item(),
                retain_loss=retain_term.item(),
                gate_loss=None if gate_term is None else gate_term.item(),
            )
        )
    adapted.train(False)
    return time.perf_counter() - started


def _targets(forget_loss: ForgetLossConfig, row: int, answer: str) -> Sequence[str]:
    return refusals_of(row) if forget_loss.target == "refusal" else [answer]


def learning_rate_share(steps_done: int, num_steps: int, warmup_fraction: float) -> float:
    """Learning rate as a share of its peak: linear up over the warm-up, linear down to 0 after it."""
    warmup_steps = warmup_fraction * num_steps
    if steps_done + 1 < warmup_steps:
        return (steps_done + 1) / warmup_steps
    return min(1.0, max(0.0, (num_steps - steps_done) / (num_steps - warmup_steps)))


@torch.no_grad()
def answer_nll(
    adapted: Adapted,
    examples: Sequence[Example],
    *,
    batch_size: int,
) -> tuple[list[float], list[list[float]] | None]:
    """Token-summed nll of each example's answer, and each prompt's gates by layer where there are gates.

    In the order of `examples`; batched by length, which changes no value beyond float rounding.
    """
    nll = [0.0] * len(examples)
    gates: list[list[float]] | None = None
    for rows in length_sorted_batches([len(example) for example in examples], batch_size):
        output = adapted.answer_output([examples[row] for row in rows])
        nll_B = sequence_sum(token_nll(output.logits_NV, output.label_N), output.row_N, len(rows))
        for row, value in zip(rows, nll_B.tolist(), strict=True):
            nll[row] = value
        if output.gate_logit_BK is not None:
            gates = gates or [[] for _ in examples]
            for row, values in zip(rows, torch.sigmoid(output.gate_logit_BK).tolist(), strict=True):
                gates[row] = values
    return nll, gates
