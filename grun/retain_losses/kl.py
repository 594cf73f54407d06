"""Divergence: go on saying of the retain answers what the untouched model says."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from grun.losses import AnswerScores, Need, Positions, kl_divergence
from grun.retain_losses.retain_loss import RetainLoss
from grun.settings import LATER


@dataclass(frozen=True, kw_only=True)
class KlConfig(RetainLoss):
    """The divergence from the untouched model on the retain items (TOFU, arXiv 2401.06121)."""

    reference: ClassVar[Need | None] = "logits"
    name: Literal["kl"] = "kl"
    positions: Positions = field(default="answer", metadata=LATER)
    """The mean is over the answers' tokens, or over the questions' too, as in TOFU's, SimNPO's and open-unlearning's
    code (which count padding, too). Not for edits, which change nothing that is said of a question."""

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""
        assert retain.reference_logits_NV is not None
        return kl_divergence(retain.reference_logits_NV, retain.logits_NV)
