"""Cross-entropy: go on learning the retain answers (GradDiff in TOFU, arXiv 2401.06121)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grun.losses import AnswerScores, mean_token_nll
from grun.retain_losses.retain_loss import RetainLoss


@dataclass(frozen=True, kw_only=True)
class CeConfig(RetainLoss):
    """The mean token nll of the retain answers."""

    name: Literal["ce"] = "ce"

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""
        return mean_token_nll(retain.nll_B, retain.num_tokens_B)
