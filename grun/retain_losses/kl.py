"""Divergence: go on saying of the retain answers what the untouched model says."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from grun.losses import AnswerScores, Need, kl_divergence
from grun.retain_losses.retain_loss import RetainLoss


@dataclass(frozen=True, kw_only=True)
class KlConfig(RetainLoss):
    """The divergence from the untouched model on the retain answers (TOFU, arXiv 2401.06121)."""

    reference: ClassVar[Need | None] = "logits"
    name: Literal["kl"] = "kl"

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""
        assert retain.reference_logits_NV is not None
        return kl_divergence(retain.reference_logits_NV, retain.logits_NV)
