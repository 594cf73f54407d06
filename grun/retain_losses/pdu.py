"""Primal-dual: keeping is a constraint, and what it weighs is learned while training goes on."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from grun.losses import AnswerScores, mean_token_nll
from grun.retain_losses.retain_loss import RetainLoss


@dataclass(frozen=True, kw_only=True)
class PduConfig(RetainLoss):
    """The mean token nll of the retain answers, to be held below a bound (arXiv 2506.05314).

    `training.retain_weight` is the dual variable's first value.
    """

    name: Literal["pdu"] = "pdu"
    max_loss: Annotated[float, Ge(0)] = 0.3
    """The bound ε, nats per token. The paper's value on TOFU."""
    dual_rate: Annotated[float, Gt(0)] = 5.0
    """By how much the weight grows a step for each nat over the bound, or shrinks below it. The paper's on TOFU."""

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""
        return mean_token_nll(retain.nll_B, retain.num_tokens_B)

    def next_weight(self, weight: float, loss: float) -> float:
        """See `RetainLoss`."""
        return dual_step(weight, loss, max_loss=self.max_loss, dual_rate=self.dual_rate)


def dual_step(weight: float, loss: float, *, max_loss: float, dual_rate: float) -> float:
    """max(0, λ + η (loss − ε)): one step of gradient ascent on the Lagrangian forget + λ (loss − ε)."""
    return max(0.0, weight + dual_rate * (loss - max_loss))
