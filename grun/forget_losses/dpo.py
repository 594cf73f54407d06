"""Direct preference optimisation: prefer a refusal to the answer, relative to the untouched model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss, Targets
from grun.losses import ForgetScores, Need, Unit
from grun.targets.answer import own_answers
from grun.targets.refusal import refusals


@dataclass(frozen=True, kw_only=True)
class DpoConfig(ForgetLoss):
    """Prefer a refusal to the forget answer (arXiv 2305.18290; on TOFU: arXiv 2401.06121)."""

    targets: ClassVar[Targets] = {"answer": own_answers, "refusal": refusals}
    reference: ClassVar[Need | None] = "nll"
    mean_over: ClassVar[Unit] = "sequences"
    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Gt(0)] = 0.1
    """Inverse temperature: the larger, the less the model may move from where it was."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        return dpo_loss(forget["answer"].change_B, forget["refusal"].change_B, beta=self.beta)


def dpo_loss(answer_change_B: Tensor, refusal_change_B: Tensor, *, beta: float) -> Tensor:
    """− (2/β) mean log σ(β (change of the answer − change of the refusal)): scalar.

    A change is nll − nll_ref, token-summed, nats. Twice the paper's loss over β, so that it compares with NPO's.
    """
    return -2.0 / beta * F.logsigmoid(beta * (answer_change_B - refusal_change_B)).mean()
