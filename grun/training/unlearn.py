"""THE training loop: every adapter with every forget loss goes through it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any, cast

import torch
from torch import Tensor

from grun.attacks.relearning import Attacker
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.losses import AnswerScores, ForgetScores, gate_bce
from grun.model.forward import Adapted, AnswerOutput
from grun.model.step import adamw, draw_anew, take_step
from grun.training.checkpoints import Checkpoints, Trained
from grun.training.plan import Part, Plan, StepExamples
from grun.training.recipe import Recipe
from grun.training.reference import Reference


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
    recipe: Recipe,
    reference: Reference | None,
    *,
    report: Callable[[Step], None] = lambda step: None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Train what the adapter makes trainable.

    plan, reference: `plan_steps` and `reference_of` with the same recipe, before the adapter was attached. progress:
    called with (what is being prepared, done, total) before. checkpoints: of a call like this one that was cut off.
    Raises UserError where the loss stops being finite, naming the step.
    """
    started, training = time.perf_counter(), recipe.training
    attacker = _made_ready(adapted, plan, recipe, progress)
    if not (parameters := adapted.trainable_parameters()):  # what was fitted is all there is
        return Trained(losses=(), seconds=time.perf_counter() - started, retain_weight=recipe.retain_weight)
    optimizer = adamw(parameters, learning_rate=recipe.learning_rate, weight_decay=training.weight_decay)
    done = checkpoints.load(parameters, optimizer) if checkpoints else None
    done = done or Trained(losses=(), seconds=0.0, retain_weight=recipe.retain_weight)
    started -= done.seconds
    num_steps, history = len(plan.steps), [*done.losses]
    steps_per_epoch, max_retain_loss = num_steps // training.num_epochs, training.max_retain_loss or math.inf
    adapted.train(True)
    for number, parts in enumerate(plan.steps[done.steps :], start=done.steps + 1):
        draw_anew(recipe.seed, number, plan.workers)
        attacked = None if attacker is None else attacker.step(number)
        losses = take_step(
            optimizer,
            partial(_backward, adapted, parts, recipe, reference, recipe.weights(number, done.retain_weight), attacked),
            learning_rate=recipe.learning_rate_at(number, num_steps),
            max_grad_norm=training.max_grad_norm,
            workers=plan.workers,
        )
        if losses is None:
            raise UserError("adapter.learning_rate", f"training diverged at step {number}; use a smaller one")
        history.append(losses)
        report(step := Step(number, num_steps, *history[-1]))
        weight = recipe.retain_loss.next_weight(done.retain_weight, step.retain_loss)
        done = Trained(losses=history, seconds=time.perf_counter() - started, retain_weight=weight)
        if number % steps_per_epoch == 0:
            if mean(retain for _, _, retain, _ in history[-steps_per_epoch:]) > max_retain_loss:
                break
            if checkpoints and (attacker is None or number % attacker.cycle == 0):
                checkpoints.offer(parameters, optimizer, done)
    adapted.train(False)
    return done


def _made_ready(
    adapted: Adapted, plan: Plan, recipe: Recipe, progress: Callable[[str, int, int], None]
) -> Attacker | None:
    """What comes before the first step: the frozen prefix, what has a closed form, and who attacks meanwhile."""
    for name, known in (("forget", plan.forget), ("retain", plan.retain)):
        adapted.announce(known, generate=False, progress=partial(progress, f"prefix cache, {name}"))
    adapted.fit(plan.forget, [*plan.retain, *plan.keep])
    adapted.train(False)
    if plan.workers.sharded:  # passes before leave the outermost weights whole, and it is the parts that are trained
        cast(Any, adapted).model.reshard()
    if (config := recipe.training.against_relearning) is None:
        return None
    assert isinstance(adapted, EditedModel), "what it edits stays as it is"
    steps_per_epoch = len(plan.steps) // recipe.training.num_epochs
    return Attacker(adapted, config, plan.relearned, seed=recipe.seed, steps_per_epoch=steps_per_epoch)


def _backward(
    adapted: Adapted,
    parts: Sequence[Part],
    recipe: Recipe,
    reference: Reference | None,
    weights: tuple[float, float, float],
    attacked: Adapted | None,
) -> Tensor:
    """Add the gradients of a step's parts. Returns what they come to together: (loss, forget, retain, gate): [4].

    attacked: the same under attack; its gradients are added, too, and its losses not told.
    """
    losses = torch.zeros(4, device=adapted.device)
    for part in parts:
        terms = _terms(adapted, part, recipe, reference)
        loss = torch.tensor(weights, device=adapted.device) @ terms
        loss.backward()
        losses += torch.cat([loss[None], terms]).detach()
    if attacked is not None and (against := recipe.training.against_relearning):
        forget, retain, gate = (against.weight * weight for weight in weights)
        _backward(attacked, parts, recipe, reference, (forget, retain, gate), None)
    return losses


def _terms(adapted: Adapted, part: Part, recipe: Recipe, reference: Reference | None) -> Tensor:
    """(forget, retain, gate loss) of one part, each times its share of the step: [3]."""
    output = adapted.answer_output(part.examples.all, recipe.forget_loss.hidden_layer)
    forget, retain = _scores(output, part.examples, recipe, reference)
    gate_loss = torch.zeros((), device=adapted.device)
    if output.gate_logit_BK is not None:
        # One row a prompt: one that stands twice, with its answer and a refusal, has the same gate in both.
        num_items = len(part.examples.retain)
        is_forget_B = torch.arange(2 * num_items, device=adapted.device) < num_items
        gate_loss = gate_bce(output.gate_logit_BK[-2 * num_items :], is_forget_B)
    return torch.stack(
        [
            part.forget_share * recipe.forget_loss(forget),
            part.retain_share * recipe.retain_loss(retain),
            part.gate_share * gate_loss,
        ]
    )


def _scores(
    output: AnswerOutput, examples: StepExamples, recipe: Recipe, reference: Reference | None
) -> tuple[ForgetScores, AnswerScores]:
    """A part's output, cut into what the forget loss and what the retain loss looks at."""
    parts = [*examples.forget.values(), examples.retain]
    losses = [recipe.forget_loss] * len(examples.forget) + [recipe.retain_loss]
    sizes = [sum(len(example.answer_ids) for example in part) for part in parts]
    logits = output.logits_NV.split(sizes)  # not slices, whose gradients would each be as large as all of it
    hidden = [None] * len(parts) if output.hidden_ND is None else output.hidden_ND.split(sizes)
    scores = []
    for part, loss, logits_NV, hidden_ND in zip(parts, losses, logits, hidden, strict=True):
        known: dict[str, Tensor] = {} if hidden_ND is None else {"hidden_ND": hidden_ND}
        if loss.reference is not None:
            assert reference is not None, "made by reference_of"
            known |= reference.known(part, loss.reference)
        scores.append(AnswerScores.of(logits_NV, [example.answer_ids for example in part], **known))
    *forget, retain = scores
    return dict(zip(examples.forget, forget, strict=True)), retain
