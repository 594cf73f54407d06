"""Negative preference optimisation: gradient ascent that fades once an answer is less likely than before."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import ForgetScores, Need, Unit


@dataclass(frozen=True, kw_only=True)
class NpoConfig(ForgetLoss):
    """Push the forget answers below their probability under the untouched model (arXiv 2404.05868)."""

    reference: ClassVar[Need | None] = "nll"
    mean_over: ClassVar[Unit] = "sequences"
    name: Literal["npo"] = "npo"
    beta: Annotated[float, Gt(0)] = 0.1
    """Inverse temperature: the larger, the sooner the push fades. 0 would be gradient ascent."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        assert forget["answer"].reference_nll_B is not None
        return npo_loss(forget["answer"].nll_B, forget["answer"].reference_nll_B, beta=self.beta)


def npo_loss(nll_B: Tensor, reference_nll_B: Tensor, *, beta: float) -> Tensor:
    """− (2/β) mean log σ(β (nll − nll_ref)): scalar. Eq. 3 of arXiv 2404.05868.

    nll_B, reference_nll_B: token-summed nll of the forget answers, nats a sequence. At nll = nll_ref: 2 ln2 / β.
    """
    return -2.0 / beta * F.logsigmoid(beta * (nll_B - reference_nll_B)).mean()
