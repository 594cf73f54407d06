"""Cross-entropy unlearning: learn one's own prediction with the right token taken out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores


@dataclass(frozen=True, kw_only=True)
class CeUConfig(ForgetLoss):
    """Cross-entropy to the model's own distribution without the true token (arXiv 2503.01224)."""

    name: Literal["ce_u"] = "ce_u"

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return ce_u_loss(forget["answer"].logits_NV, forget["answer"].label_N)


def ce_u_loss(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """Mean over tokens of − Σ_v q_v log p_v, q = softmax of the logits with the label's at −∞, held constant.

    Scalar, nats per token.
    """
    logits_NV = logits_NV.float()
    target_NV = logits_NV.detach().scatter(1, label_N[:, None], -torch.inf).softmax(dim=-1)
    return F.cross_entropy(logits_NV, target_NV)
