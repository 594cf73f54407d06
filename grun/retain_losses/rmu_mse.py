"""RMU's other half: hidden states of retain answers stay where they were."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from grun.losses import AnswerScores, Need, Positions
from grun.retain_losses.retain_loss import RetainLoss
from grun.settings import LATER


@dataclass(frozen=True, kw_only=True)
class RmuMseConfig(RetainLoss):
    """The mean squared distance from the untouched model's hidden states, at forget_loss's layer (arXiv 2403.03218)."""

    reference: ClassVar[Need | None] = "hidden"
    name: Literal["rmu_mse"] = "rmu_mse"
    positions: Positions = field(default="answer", metadata=LATER)
    """The mean is over the answers' tokens, or over all but each first one, as in the authors' code. Not for edits."""

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""
        assert retain.hidden_ND is not None
        assert retain.reference_hidden_ND is not None
        return F.mse_loss(retain.hidden_ND.float(), retain.reference_hidden_ND.float())
