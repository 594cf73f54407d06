"""Simple negative preference optimisation: NPO by length-normalised likelihood, without a reference."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores, Unit


@dataclass(frozen=True, kw_only=True)
class SimnpoConfig(ForgetLoss):
    """Push the forget answers' likelihood per token down (arXiv 2410.07163)."""

    mean_over: ClassVar[Unit] = "sequences"
    paper_retain_weight: ClassVar[float] = 1 / 0.1375  # on forget05 0.1375 : 1, at this beta
    name: Literal["simnpo"] = "simnpo"
    beta: Annotated[float, Gt(0)] = 2.5
    """Inverse temperature of the per-token likelihood. The paper's value on TOFU."""
    gamma: Annotated[float, Ge(0)] = 0.0
    """Margin γ, outside of β as in the paper. Its authors' code and open-unlearning have a δ inside: γ = β δ. 0 is the
    paper's choice on TOFU."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return simnpo_loss(forget["answer"].nll_B, forget["answer"].num_tokens_B, beta=self.beta, gamma=self.gamma)


def simnpo_loss(nll_B: Tensor, num_tokens_B: Tensor, *, beta: float, gamma: float) -> Tensor:
    """− (2/β) mean log σ(β nll/n − γ): scalar. nll_B: token-summed, nats; num_tokens_B: n.

    Its authors' code has log σ(β (nll/n − δ)): the same with γ = β δ.
    """
    return -2.0 / beta * F.logsigmoid(beta * nll_B / num_tokens_B - gamma).mean()
