"""THE training loop: every adapter with every forget loss goes through it.

Shapes: B all sequences of a step (forget first, then retain), N their answer tokens, K edited layers.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from grun.errors import UserError
from grun.forget_losses import ForgetLossConfig
from grun.forget_losses.rmu import RmuConfig
from grun.losses import (
    AnswerScores,
    ForgetScores,
    gate_bce,
    kl_divergence,
    mean_token_nll,
)
from grun.model.forward import Adapted, AnswerOutput, CausalLM
from grun.model.layers import Layer
from grun.training.checkpoints import Checkpoints, Trained
from grun.training.plan import Plan, StepExamples
from grun.training.reference import Need, Reference
from grun.workers import ALONE, Workers

RetainLoss = Literal["ce", "kl", "rmu_mse"]
RETAIN_NEEDS: dict[RetainLoss, Need | None] = {"ce": None, "kl": "logits", "rmu_mse": "hidden"}
"""What each retain loss needs of the untouched model."""


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
    max_retain_loss: Annotated[float, Gt(0)] | None = None
    """Training ends early once the retain loss, its mean over an epoch, is larger: such a model is lost, and the
    rest of a trial's time with it. None: never."""

    def resolved(self, forget_loss: ForgetLossConfig) -> TrainingConfig:
        """The same with the paper's retain_weight filled in where it is None."""
        if self.retain_weight is not None:
            return self
        return replace(self, retain_weight=forget_loss.paper_retain_weight)


@dataclass(frozen=True)
class Step:
    """What one step did, all workers together; handed to `report`."""

    step: int
    """From 1."""
    num_steps: int
    loss: float
    forget_loss: float
    retain_loss: float
    gate_loss: float
    """0 where there are no gates."""


def unlearn(
    adapted: Adapted,
    plan: Plan,
    *,
    forget_loss: ForgetLossConfig,
    retain_loss: RetainLoss,
    training: TrainingConfig,
    learning_rate: float,
    gate_weight: float,
    gate_warmup_steps: int,
    reference: Reference | None,
    seed: int,
    report: Callable[[Step], None],
    progress: Callable[[str, int, int], None],
    workers: Workers = ALONE,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Train what the adapter makes trainable.

    plan: made with `forget_loss.targets`, `training`'s batches and epochs, and `workers`.
    checkpoints: where an earlier, cut off call with the same arguments left what it had.
    reference: what `reference_of` gave before the adapter was attached.
    progress: called with (what is being prepared, done, total) before the first step.
    Raises UserError where the loss stops being finite, naming the step.
    """
    started = time.perf_counter()
    training = training.resolved(forget_loss)
    for name, known in (("forget", plan.forget), ("retain", plan.retain)):
        adapted.prepare(known, generate=False, progress=partial(progress, f"prefix cache, {name}"))

    num_steps = len(plan.steps)
    parameters = adapted.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=training.weight_decay)
    before = checkpoints.load(parameters, optimizer) if checkpoints else Trained()
    started -= before.seconds
    step, steps_an_epoch = before.steps, num_steps // training.num_epochs
    retain_losses: list[float] = []
    adapted.train(True)
    for step, parts in enumerate(plan.steps[before.steps :], start=before.steps + 1):
        torch.manual_seed(zlib.crc32(f"{seed}/{step}/{workers.rank}".encode()))  # LoRA's dropout
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_share(step - 1, num_steps, training.warmup_fraction)
        warm = min(1.0, step / gate_warmup_steps) if gate_warmup_steps else 1.0
        optimizer.zero_grad(set_to_none=True)
        done: list[list[Tensor]] = []
        for part in parts:
            output = adapted.answer_output(part.examples.all, hidden_layer(forget_loss))
            forget, retain = _scores(output, part.examples, reference, forget_loss, retain_loss)
            forget_term = part.forget_share * forget_loss(forget)
            retain_term = part.retain_share * _retain_loss(retain, retain_loss)
            gate_term = torch.zeros((), device=adapted.device)
            if output.gate_logit_BK is not None:
                # One row a prompt: one that stands twice, with its answer and a refusal, has the same gate in both.
                num_items = len(part.examples.retain)
                gate_logit_BK = output.gate_logit_BK[-2 * num_items :]
                is_forget_B = torch.arange(2 * num_items, device=adapted.device) < num_items
                gate_term = part.gate_share * gate_bce(gate_logit_BK, is_forget_B)
            loss = warm * (training.forget_weight * forget_term + (training.retain_weight or 0.0) * retain_term)
            loss = loss + gate_weight * gate_term
            loss.backward()
            done.append([term.detach() for term in (loss, forget_term, retain_term, gate_term)])

        workers.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError(
                "adapter.learning_rate", f"training diverged at step {step} of {num_steps}; use a smaller one"
            )
        optimizer.step()
        losses = workers.sum(torch.stack([torch.stack(terms) for terms in done]).sum(dim=0)).tolist()
        report(Step(step, num_steps, *losses))
        retain_losses.append(losses[2])
        if step % steps_an_epoch == 0:
            if mean(retain_losses) > (training.max_retain_loss or math.inf):
                break
            retain_losses.clear()
            if checkpoints:
                checkpoints.offer(parameters, optimizer, Trained(steps=step, seconds=time.perf_counter() - started))
    adapted.train(False)
    return Trained(steps=step, seconds=time.perf_counter() - started)


def hidden_layer(forget_loss: ForgetLossConfig) -> Layer | None:
    """Where the losses look at hidden states; None where they do not."""
    return forget_loss.layer if isinstance(forget_loss, RmuConfig) else None


def reference_of(
    model: CausalLM,
    plan: Plan,
    forget_loss: ForgetLossConfig,
    retain_loss: RetainLoss,
    *,
    batch_size: int,
    progress: Callable[[str, int, int], None],
) -> Reference | None:
    """What the losses need of the untouched model on what the plan trains on; None where they need nothing.

    model: before an adapter is attached. batch_size: sequences a forward pass.
    """
    forget_need, retain_need = forget_loss.reference, RETAIN_NEEDS[retain_loss]
    parts = [part.examples for step in plan.steps for part in step]
    examples = [example for part in parts for example in (*part.answers, *part.refusals) if forget_need]
    examples += [example for part in parts for example in part.retain if retain_need]
    if not examples:
        return None
    return Reference(
        model,
        examples,
        needs=[need for need in (forget_need, retain_need) if need is not None],
        hidden_layer=hidden_layer(forget_loss),
        batch_size=batch_size,
        progress=partial(progress, "reference model"),
    )


def _scores(
    output: AnswerOutput,
    examples: StepExamples,
    reference: Reference | None,
    forget_loss: ForgetLossConfig,
    retain_loss: RetainLoss,
) -> tuple[ForgetScores, AnswerScores]:
    """A step's output, cut into what the forget loss and what the retain loss looks at."""
    parts = (examples.answers, examples.refusals, examples.retain)
    needs = (forget_loss.reference, forget_loss.reference, RETAIN_NEEDS[retain_loss])
    scores: list[AnswerScores | None] = []
    end = 0
    for part, need in zip(parts, needs, strict=True):
        num_tokens = [len(example.answer_ids) for example in part]
        here = slice(end, end := end + sum(num_tokens))
        if not part:
            scores.append(None)
            continue
        known: dict[str, Tensor | None] = {"hidden_ND": None if output.hidden_ND is None else output.hidden_ND[here]}
        if need is not None:
            assert reference is not None, "made by reference_of"
            if need == "nll":
                known["reference_nll_B"] = reference.nll_B(part)
            elif need == "logits":
                known["reference_logits_NV"] = reference.logits_NV(part)
            else:
                known["reference_hidden_ND"] = reference.hidden_ND(part)
        scores.append(AnswerScores.of(output.logits_NV[here], output.label_N[here], num_tokens, **known))
    answer, refusal, retain = scores
    assert retain is not None
    return ForgetScores(answer=answer, refusal=refusal), retain


def _retain_loss(retain: AnswerScores, name: RetainLoss) -> Tensor:
    if name == "ce":
        return mean_token_nll(retain.nll_B, retain.num_tokens_B)
    if name == "kl":
        assert retain.reference_logits_NV is not None
        return kl_divergence(retain.reference_logits_NV, retain.logits_NV)
    assert retain.hidden_ND is not None
    assert retain.reference_hidden_ND is not None
    return F.mse_loss(retain.hidden_ND.float(), retain.reference_hidden_ND.float())


def learning_rate_share(steps_done: int, num_steps: int, warmup_fraction: float) -> float:
    """Learning rate as a share of its peak: linear up over the warm-up, linear down to 0 after it."""
    warmup_steps = warmup_fraction * num_steps
    if steps_done + 1 < warmup_steps:
        return (steps_done + 1) / warmup_steps
    return min(1.0, max(0.0, (num_steps - steps_done) / (num_steps - warmup_steps)))
