"""Train the model to refuse: the answer is replaced by a sentence that says it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from grun.losses import AnswerScores, mean_token_nll


@dataclass(frozen=True, kw_only=True)
class IdkConfig:
    """Lower the loss of a refusal in place of the answer (TOFU, arXiv 2401.06121)."""

    paper_retain_weight: ClassVar[float] = 1.0
    target: ClassVar[Literal["refusal"]] = "refusal"
    needs_reference: ClassVar[bool] = False
    name: Literal["idk"] = "idk"

    def __call__(self, scores: AnswerScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return idk_loss(scores.nll_B, scores.num_tokens_B)


def idk_loss(refusal_nll_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """Mean token nll of the refusals. refusal_nll_B: nats a sequence. Scalar, nats per token."""
    return mean_token_nll(refusal_nll_B, num_tokens_B)
