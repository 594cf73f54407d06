"""Weighted gradient ascent: likely tokens are pushed hardest, forgotten ones no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from grun.declared import declares
from grun.forget_losses.forget_loss import ForgetLoss, Targets
from grun.losses import ForgetScores, Need, Unit
from grun.targets.answer import own_answers


@declares(ForgetLoss)
@dataclass(frozen=True, kw_only=True)
class WgaConfig:
    """Gradient ascent, each token weighted by its own probability (arXiv 2502.19301)."""

    paper_retain_weight: ClassVar[float] = 1.0
    targets: ClassVar[Targets] = {"answer": own_answers}
    reference: ClassVar[Need | None] = None
    mean_over: ClassVar[Unit] = "tokens"
    hidden_layer: ClassVar[None] = None
    name: Literal["wga"] = "wga"
    beta: Annotated[float, Ge(0)] = 1.0
    """Power of the probability; 0 is gradient ascent."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return wga_loss(forget["answer"].nll_N, beta=self.beta)


def wga_loss(nll_N: Tensor, *, beta: float) -> Tensor:
    """− mean p^β nll over all answer tokens, p = e^−nll held constant: scalar, nats per token."""
    return -((-beta * nll_N).exp().detach() * nll_N).mean()
