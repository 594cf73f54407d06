"""Cross-entropy unlearning: learn one's own prediction with the right token taken out of it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores, Unit


@dataclass(frozen=True, kw_only=True)
class CeUConfig(ForgetLoss):
    """Cross-entropy to the model's own distribution without the true token (arXiv 2503.01224)."""

    paper_retain_weight: ClassVar[float] = 0.0  # it has no retain loss
    name: Literal["ce_u"] = "ce_u"
    first_token: bool = False
    """Whether the first token of an answer is unlearned too. The paper leaves it out (a footnote to its settings)."""

    @property
    def mean_over(self) -> Unit:
        """See `ForgetLoss`."""
        return "tokens" if self.first_token else "later_tokens"

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch; 0 where no answer has a second token."""
        answer = forget["answer"]
        here_N = torch.ones_like(answer.is_first_N) if self.first_token else ~answer.is_first_N
        return ce_u_loss(answer.logits_NV[here_N], answer.label_N[here_N])


def ce_u_loss(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """Mean over tokens of − Σ_v q_v log p_v, q = softmax of the logits with the label's at −∞, held constant.

    Scalar, nats per token.
    """
    logits_NV = logits_NV.float()
    target_NV = logits_NV.detach().scatter(1, label_N[:, None], -torch.inf).softmax(dim=-1)
    return F.cross_entropy(logits_NV, target_NV, reduction="sum") / max(1, len(label_N))
