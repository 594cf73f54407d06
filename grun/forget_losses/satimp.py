"""Saturation and importance: gradient ascent on tokens that are neither forgotten nor certain."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores


@dataclass(frozen=True, kw_only=True)
class SatimpConfig(ForgetLoss):
    """Gradient ascent, each token weighted by p^β1 (1 − p)^β2 (arXiv 2505.11953)."""

    paper_retain_weight: ClassVar[float] = 0.1  # in its authors' code; open-unlearning's settings swap the two
    name: Literal["satimp"] = "satimp"
    beta1: Annotated[float, Ge(0)] = 5.0
    """Power of p: the larger, the sooner a token counts as forgotten. The paper's value."""
    beta2: Annotated[float, Ge(0)] = 1.0
    """Power of 1 − p: the larger, the less a certain token counts. The paper's value."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return satimp_loss(forget["answer"].nll_N, beta1=self.beta1, beta2=self.beta2)


def satimp_loss(nll_N: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """− mean p^β1 (1 − p)^β2 nll over all answer tokens, p = e^−nll held constant: scalar, nats per token."""
    p_N = (-nll_N).exp().detach()
    return -(p_N**beta1 * (1.0 - p_N) ** beta2 * nll_N).mean()
