"""Weighted gradient ascent: likely tokens are pushed hardest, forgotten ones no more."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores


@dataclass(frozen=True, kw_only=True)
class WgaConfig(ForgetLoss):
    """Gradient ascent, each token weighted by its own probability (arXiv 2502.19301)."""

    name: Literal["wga"] = "wga"
    beta: Annotated[float, Ge(0)] = 1.0
    """Power of the probability; 0 is gradient ascent."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return wga_loss(forget["answer"].nll_N, beta=self.beta)


def wga_loss(nll_N: Tensor, *, beta: float) -> Tensor:
    """− mean p^β nll over all answer tokens, p = e^−nll held constant: scalar, nats per token."""
    return -((-beta * nll_N).exp().detach() * nll_N).mean()
