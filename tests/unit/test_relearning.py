"""Training against an attacker: whose copy moves, begins anew, and counts beside the model as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.config import run_config
from grun.adapters.grun import GrunConfig
from grun.attacks.relearning import AgainstRelearningConfig, Attacker, relearn
from grun.errors import UserError
from grun.losses import gate_bce
from grun.testing.small import FORGET, RETAIN, SmallModels
from grun.training.plan import plan_steps
from grun.training.unlearn import unlearn

ADAPTER = GrunConfig(layers=(1,), edits="answer", learning_rate=1e-2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    return SmallModels.made_in(tmp_path_factory.mktemp("base"))


def _weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_copy_moves_and_begins_anew(models: SmallModels) -> None:
    """Two steps, then from the untouched weights again; an epoch of three steps ends before a cycle of two does."""
    model, template = models.fresh()
    examples = [item.example(template) for item in FORGET]
    adapted = ADAPTER.attach(model, 0)
    config = AgainstRelearningConfig(items=2, steps=2, learning_rates=(1e-3,))
    attacker = Attacker(adapted, config, examples, seed=0, steps_per_epoch=3)
    untouched, edits = _weights(model), _weights(adapted.edits)
    states = [_weights(attacker.step(number).model) for number in range(1, 5)]
    assert attacker.cycle == 3
    assert _same(untouched, _weights(model))
    assert _same(edits, _weights(adapted.edits))
    largest = [max((a - b).abs().max().item() for a, b in zip(s, untouched, strict=True)) for s in states]
    assert largest[0] == pytest.approx(1e-3, rel=1e-2), "AdamW's first step: the learning rate"
    assert largest[1] > 1.5e-3
    assert [value == pytest.approx(1e-3, rel=1e-2) for value in largest] == [True, False, True, True]
    assert not any(parameter.requires_grad for parameter in attacker.adapted.model.parameters())
    again = Attacker(adapted, config, examples, seed=0, steps_per_epoch=3)
    assert _same(_weights(again.step(4).model), states[3]), "what a training that goes on there meets"


def test_its_losses_are_added(models: SmallModels) -> None:
    """One step of a training, whose gradient is clipped to no length: that of both models' losses, by hand."""
    model, template = models.fresh()
    forget, retain = ([item.example(template) for item in items] for items in (FORGET[:2], RETAIN[:2]))
    config = run_config(
        {
            "adapter": {"layers": [1], "edits": "answer", "learning_rate": 1e-2},
            "forget_loss": "grad_ascent",
            "training": {
                "num_epochs": 1,
                "batch_size": 2,
                "max_grad_norm": 1e9,
                "against_relearning": {"weight": 0.5, "items": 2, "learning_rates": [1e-2]},
            },
        }
    )
    recipe = config.recipe
    plan = replace(plan_steps(recipe, {"answer": [[each] for each in forget]}, retain), relearned=forget)
    trained = ADAPTER.attach(model, 0)
    unlearn(trained, plan, recipe, None)

    by_hand = ADAPTER.attach(model, 0)
    attacked = Attacker(
        by_hand, AgainstRelearningConfig(items=2, learning_rates=(1e-2,)), forget, seed=0, steps_per_epoch=1
    )
    optimizer = torch.optim.AdamW(by_hand.trainable_parameters(), lr=recipe.learning_rate_at(1, 1), weight_decay=0.0)
    moved = attacked.step(1)
    optimizer.zero_grad()
    (part,) = plan.steps[0]
    num_told = sum(len(example.answer_ids) for example in part.examples.forget["answer"])
    for adapted, weight in ((by_hand, 1.0), (moved, 0.5)):
        output = adapted.answer_output(part.examples.all)
        nll_N = output.scores.nll_N
        loss = -nll_N[:num_told].mean() + config.training.retain_weight * nll_N[num_told:].mean()  # type: ignore[operator]
        assert output.gate_logit_BK is not None
        gate = gate_bce(output.gate_logit_BK, torch.tensor([True, True, False, False]))
        (weight * (loss + recipe.gate_weight * gate)).backward()
    optimizer.step()
    for ours, theirs in zip(trained.trainable_parameters(), by_hand.trainable_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_relearning_lowers_what_it_is_about(models: SmallModels) -> None:
    model, template = models.fresh()
    examples = [item.example(template) for item in FORGET[:2]]
    adapted = ADAPTER.attach(model, 0)
    attacker = Attacker(
        adapted, AgainstRelearningConfig(items=2, learning_rates=(1e-3,)), examples, seed=0, steps_per_epoch=10
    )

    def nll() -> float:
        return attacker.adapted.answer_output(examples).scores.nll_N.mean().item()

    attacker.step(1)
    before = nll()
    for number in range(2, 8):
        attacker.step(number)
    assert nll() < before
    optimizer = torch.optim.AdamW(adapted.trainable_parameters(), lr=1e-2)
    said = adapted.answer_output(examples).scores.nll_N.mean().item()
    relearn(adapted, examples, optimizer)
    assert adapted.answer_output(examples).scores.nll_N.mean().item() < said


def test_a_step_without_finite_gradients_moves_nothing(models: SmallModels) -> None:
    """As in every other training: an attacker whose steps explode has what the last sound one gave."""
    model, template = models.fresh()
    adapted = ADAPTER.attach(model, 0)
    attacker = Attacker(
        adapted,
        AgainstRelearningConfig(items=2, learning_rates=(1e-3,)),
        [item.example(template) for item in FORGET],
        seed=0,
        steps_per_epoch=10,
    )
    attacked = attacker.step(1)
    with torch.no_grad():
        next(attacked.model.parameters())[:] = torch.nan
    before = _weights(attacked.model)[1:]
    attacker.step(2)
    assert _same(before, _weights(attacked.model)[1:])


@pytest.mark.parametrize("adapter", ["lora", "full", "gated_lora", "eco"])
def test_who_trains_weights_is_refused(adapter: str) -> None:
    with pytest.raises(UserError, match=rf"^training\.against_relearning: {adapter} is no edit of a frozen model"):
        run_config({"adapter": adapter, "training": {"against_relearning": {}}})


def test_learning_rates_are_the_models_own() -> None:
    """As the attack has them that an evaluation makes; a config without it has the key that it had."""
    config = run_config({"model": {"fine_tuning": {"learning_rate": 0.004}}, "training": {"against_relearning": {}}})
    assert config.training.against_relearning is not None
    assert config.training.against_relearning.learning_rates == (0.004, pytest.approx(0.0004))
    assert "against_relearning" not in run_config({}).to_dict()["training"]
