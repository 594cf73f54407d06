"""What every forget loss must keep, new ones included."""

from typing import Any, get_args

import pytest
import torch

from grun.forget_losses import ForgetLossConfig
from grun.losses import AnswerScores


@pytest.fixture(params=get_args(ForgetLossConfig), ids=lambda kind: kind.name)
def loss(request: pytest.FixtureRequest) -> Any:
    return request.param()


def _scores(nll_B: torch.Tensor, loss: Any) -> AnswerScores:
    return AnswerScores(
        nll_B=nll_B,
        num_tokens_B=torch.tensor([4.0, 7.0]),
        reference_nll_B=torch.tensor([3.0, 9.0]) if loss.needs_reference else None,
    )


def test_is_a_finite_scalar_with_a_gradient_for_every_sequence(loss: Any) -> None:
    nll = torch.tensor([3.0, 11.0], requires_grad=True)
    value = loss(_scores(nll, loss))
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert nll.grad is not None
    assert (nll.grad != 0).all()


def test_pushes_the_target_the_right_way(loss: Any) -> None:
    """Descent must raise the nll of an answer, and lower that of a refusal."""
    nll = torch.tensor([3.0, 11.0], requires_grad=True)
    loss(_scores(nll, loss)).backward()
    assert nll.grad is not None
    assert (nll.grad < 0).all() if loss.target == "answer" else (nll.grad > 0).all()


def test_stays_finite_on_a_wrecked_model(loss: Any) -> None:
    nll = torch.tensor([3e4, 0.0], requires_grad=True)
    loss(_scores(nll, loss)).backward()
    assert nll.grad is not None
    assert torch.isfinite(nll.grad).all()
