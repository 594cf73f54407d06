"""Cross-entropy: go on learning the retain answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from grun.declared import declares
from grun.losses import AnswerScores, Need, mean_token_nll
from grun.retain_losses.retain_loss import RetainLoss


@declares(RetainLoss)
@dataclass(frozen=True, kw_only=True)
class CeConfig:
    """The mean token nll of the retain answers."""

    reference: ClassVar[Need | None] = None
    name: Literal["ce"] = "ce"

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""
        return mean_token_nll(retain.nll_B, retain.num_tokens_B)

    def next_weight(self, weight: float, loss: float) -> float:
        """See `RetainLoss`."""
        return weight
