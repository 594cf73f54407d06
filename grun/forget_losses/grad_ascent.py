"""Gradient ascent on the forget answers; with a retain loss beside it, this is GradDiff (GD)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores, mean_token_nll


@dataclass(frozen=True, kw_only=True)
class GradAscentConfig(ForgetLoss):
    """Raise the forget answers' loss without bound (TOFU, arXiv 2401.06121)."""

    name: Literal["grad_ascent"] = "grad_ascent"

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return grad_ascent_loss(forget["answer"].nll_B, forget["answer"].num_tokens_B)


def grad_ascent_loss(nll_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """− mean token nll of the forget answers. nll_B: nats a sequence. Scalar, nats per token."""
    return -mean_token_nll(nll_B, num_tokens_B)
