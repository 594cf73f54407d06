"""Every retain loss of ours keeps the contract, new ones included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from grun.adapters.full import FullConfig
from grun.data import Example
from grun.errors import UserError
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.forget_losses.rmu import RmuConfig, steering_vector
from grun.retain_losses import RetainLossConfig
from grun.retain_losses.kl import KlConfig
from grun.retain_losses.rmu_mse import RmuMseConfig
from grun.testing.retain_losses import RetainLossContract
from grun.testing.small import FORGET, RETAIN, SmallModels
from grun.training.plan import plan_steps
from grun.training.recipe import Recipe, TrainingConfig
from grun.training.reference import reference_of
from grun.training.unlearn import Step, unlearn


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_kl_over_answers_and_over_all_positions(positions: Any, tmp_path: Path) -> None:
    """The second step's loss is what `transformers` itself makes of whole sequences, with their questions or without.

    The two are far apart. Where nothing was trained yet the loss is 0.
    """
    models = SmallModels.made_in(tmp_path / "base")
    (untouched, template), (model, _) = models.fresh(), models.fresh()
    recipe = Recipe(
        forget_loss=GradAscentConfig(),
        retain_loss=KlConfig(positions=positions),
        training=TrainingConfig(num_epochs=2, batch_size=len(FORGET), warmup_fraction=0.0),
        learning_rate=1e-2,
    )
    examples = [item.example(template) for item in RETAIN]
    plan = plan_steps(recipe, {"answer": [[item.example(template)] for item in FORGET]}, examples)
    reference = reference_of(model, plan, recipe, batch_size=4, progress=lambda *phase: None)
    found, of_answers, of_all = [], [], []

    def note(step: Step) -> None:
        found.append(step.retain_loss)
        of_answers.append(_divergence(untouched, model, examples, everywhere=False))
        of_all.append(_divergence(untouched, model, examples, everywhere=True))

    unlearn(FullConfig(learning_rate=1e-2).attach(model, 0), plan, recipe, reference, report=note)
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[1] == pytest.approx((of_all if positions == "all" else of_answers)[0], rel=1e-4)
    assert of_all[0] != pytest.approx(of_answers[0], rel=0.05)


@torch.no_grad()
def _divergence(untouched: Any, model: Any, examples: Sequence[Example], *, everywhere: bool) -> float:
    """KL(untouched ‖ model), mean over the positions that predict a token, or one of an answer."""
    each = []
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        log_q, log_p = (some(ids).logits[0, :-1].log_softmax(dim=-1) for some in (model, untouched))
        each.append((log_p.exp() * (log_p - log_q)).sum(dim=-1)[0 if everywhere else len(example.prompt_ids) - 1 :])
    return torch.cat(each).mean().item()


class TestRetainLosses(RetainLossContract):
    @pytest.fixture(params=get_args(RetainLossConfig), ids=lambda kind: kind.name)
    def loss(self, request: pytest.FixtureRequest) -> Any:
        return request.param()


def test_the_rmu_baseline_as_published(tmp_path: Path) -> None:
    """`mlp.down_proj` of one layer moves and nothing else; both losses look at every token's hidden state but the last.

    The first step's losses by `transformers` itself: mean squared distance to c · u, and 0 as nothing moved yet.
    """
    models = SmallModels.made_in(tmp_path / "base")
    (untouched, template), (model, _) = models.fresh(), models.fresh()
    rmu = RmuConfig(layer=1, steering_coefficient=2.0, positions="all")
    recipe = Recipe(
        forget_loss=rmu,
        retain_loss=RmuMseConfig(positions="all"),
        training=TrainingConfig(num_epochs=2, batch_size=len(FORGET), warmup_fraction=0.0),
        learning_rate=1e-2,
    )
    forget, retain = ([item.example(template) for item in items] for items in (FORGET, RETAIN))
    plan = plan_steps(recipe, {"answer": [[example] for example in forget]}, retain)
    reference = reference_of(model, plan, recipe, batch_size=4, progress=lambda *phase: None)
    adapted = FullConfig(learning_rate=1e-2, layers=(1,), modules=("mlp.down_proj",)).attach(model, 0)
    steps: list[Step] = []
    unlearn(adapted, plan, recipe, reference, report=steps.append)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, untouched.get_parameter(name))}
    assert moved == {"model.layers.1.mlp.down_proj.weight"}
    ids = [torch.tensor([(example.prompt_ids + example.answer_ids)[:-1]]) for example in forget]
    with torch.no_grad():
        hidden_ND = torch.cat([untouched(each, output_hidden_states=True).hidden_states[2][0] for each in ids])
    steered_D = steering_vector(hidden_ND.shape[1], 2.0, 0)
    assert steps[0].forget_loss == pytest.approx((hidden_ND - steered_D).square().mean().item(), rel=1e-4)
    assert steps[0].retain_loss == pytest.approx(0.0, abs=1e-9)
    assert steps[1].retain_loss > 0.0
    with pytest.raises(UserError, match=r"adapter\.modules: a layer of this model has no mlp\.w2; name another"):
        FullConfig(modules=("mlp.w2",)).attach(model, 0)
