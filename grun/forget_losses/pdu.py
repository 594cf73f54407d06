"""Logit-margin flattening: on forget answers every token is to seem as likely as every other."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores


@dataclass(frozen=True, kw_only=True)
class PduConfig(ForgetLoss):
    """Pull the largest logit down to the mean of all (arXiv 2506.05314); retain_loss pdu is its other half."""

    paper_retain_weight: ClassVar[float] = 100.0  # where the weight starts, on TOFU
    name: Literal["pdu"] = "pdu"

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return margin_loss(forget["answer"].logits_NV)


def margin_loss(logits_NV: Tensor) -> Tensor:
    """Mean over tokens of (largest logit − mean logit)²: scalar. 0 where all tokens are equally likely.

    It needs no softmax, so its gradient fades only as the margin does.
    """
    logits_NV = logits_NV.float()
    return (logits_NV.amax(dim=-1) - logits_NV.mean(dim=-1)).square().mean()
