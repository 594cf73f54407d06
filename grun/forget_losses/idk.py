"""Train the model to refuse: the answer is replaced by a sentence that says it does not know."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss, Targets
from grun.losses import ForgetScores, mean_token_nll
from grun.targets.refusal import refusals


@dataclass(frozen=True, kw_only=True)
class IdkConfig(ForgetLoss):
    """Lower the loss of a refusal in place of the answer (TOFU, arXiv 2401.06121)."""

    targets: ClassVar[Targets] = {"refusal": refusals}
    name: Literal["idk"] = "idk"

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return idk_loss(forget["refusal"].nll_B, forget["refusal"].num_tokens_B)


def idk_loss(refusal_nll_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """Mean token nll of the refusals. refusal_nll_B: nats a sequence. Scalar, nats per token."""
    return mean_token_nll(refusal_nll_B, num_tokens_B)
