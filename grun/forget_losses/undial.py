"""Self-distillation with adjusted logits: learn what the untouched model said, the right token made unlikely."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores, Need


@dataclass(frozen=True, kw_only=True)
class UndialConfig(ForgetLoss):
    """Distil the untouched model with each true token's logit lowered (arXiv 2402.10052)."""

    reference: ClassVar[Need | None] = "logits"
    paper_retain_weight: ClassVar[float] = 0.0  # it has no retain loss
    name: Literal["undial"] = "undial"
    beta: Annotated[float, Gt(0)] = 10.0
    """How far the true token's logit is lowered."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        assert forget["answer"].reference_logits_NV is not None
        return undial_loss(
            forget["answer"].logits_NV, forget["answer"].reference_logits_NV, forget["answer"].label_N, beta=self.beta
        )


def undial_loss(logits_NV: Tensor, reference_logits_NV: Tensor, label_N: Tensor, *, beta: float) -> Tensor:
    """Mean over tokens of − Σ_v q_v log p_v, q = softmax(reference logits − β at the label): scalar, nats per token."""
    lowered_NV = reference_logits_NV.float().clone()
    lowered_NV[torch.arange(len(label_N), device=label_N.device), label_N] -= beta
    return F.cross_entropy(logits_NV.float(), lowered_NV.softmax(dim=-1))
