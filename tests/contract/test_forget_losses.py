"""What every forget loss must keep, new ones included."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from grun.forget_losses import ForgetLossConfig
from grun.losses import AnswerScores, ForgetScores

NUM_TOKENS = [2, 3]
VOCABULARY = 5
LABELS = {"answer": torch.tensor([0, 1, 2, 3, 4]), "refusal": torch.tensor([4, 4, 1, 0, 2])}


@pytest.fixture(params=get_args(ForgetLossConfig), ids=lambda kind: kind.name)
def loss(request: pytest.FixtureRequest) -> Any:
    return request.param()


class _Model:
    """Two sequences of answers and of refusals: free logits and hidden states, and those of the reference."""

    def __init__(self, scale: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(0)
        self.logits = {
            name: (scale * torch.randn(5, VOCABULARY, generator=draw)).requires_grad_(True) for name in LABELS
        }
        self.hidden = torch.randn(5, 8, generator=draw).requires_grad_(True)
        self.reference = {name: torch.randn(5, VOCABULARY, generator=draw) for name in LABELS}

    def leaves(self) -> list[Tensor]:
        return [*self.logits.values(), self.hidden]

    def scores(self, loss: Any) -> ForgetScores:
        """Just what the loss asks for, as the training loop hands it over."""
        parts: dict[str, AnswerScores] = {}
        for name in loss.targets:
            known: dict[str, Tensor | None] = {"hidden_ND": None if loss.hidden_layer is None else self.hidden}
            if loss.reference == "nll":
                known["reference_nll_B"] = AnswerScores.of(self.reference[name], LABELS[name], NUM_TOKENS).nll_B
            elif loss.reference == "logits":
                known["reference_logits_NV"] = self.reference[name]
            parts[name] = AnswerScores.of(self.logits[name], LABELS[name], NUM_TOKENS, **known)
        return parts

    def nll(self, name: str) -> Tensor:
        return AnswerScores.of(self.logits[name], LABELS[name], NUM_TOKENS).nll_B.detach()


def test_is_a_finite_scalar_with_a_gradient_for_every_token(loss: Any) -> None:
    model = _Model()
    value = loss(model.scores(loss))
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    watched = [model.hidden] if loss.hidden_layer is not None else [model.logits[name] for name in loss.targets]
    for leaf in watched:
        assert leaf.grad is not None
        assert (leaf.grad != 0).any(dim=1).all()


def test_a_step_down_pushes_its_targets_the_right_way(loss: Any) -> None:
    """It raises the nll of every answer and lowers that of everything else; one that steers a layer falls itself."""
    model = _Model()
    before = {name: model.nll(name) for name in loss.targets}
    value = loss(model.scores(loss))
    value.backward()
    with torch.no_grad():
        for leaf in model.leaves():
            if leaf.grad is not None:
                leaf -= 0.05 * leaf.grad / leaf.grad.norm()
    if loss.hidden_layer is not None:
        assert loss(model.scores(loss)) < value
        return
    for name in loss.targets:
        assert (model.nll(name) > before[name] if name == "answer" else model.nll(name) < before[name]).all()


def test_stays_finite_on_a_wrecked_model(loss: Any) -> None:
    model = _Model(scale=1e4)
    loss(model.scores(loss)).backward()
    for leaf in model.leaves():
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()


def test_says_what_it_looks_at(loss: Any) -> None:
    assert loss.targets
    assert set(loss.targets) <= set(LABELS)
    assert loss.reference in (None, "nll", "logits")
