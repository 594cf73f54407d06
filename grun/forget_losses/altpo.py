"""Alternate preference optimisation: DPO with answers of the model's own making in place of refusals."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from torch import Tensor

from grun.forget_losses.dpo import dpo_loss
from grun.forget_losses.forget_loss import ForgetLoss, Targets
from grun.losses import ForgetScores, Need, Unit
from grun.targets.alternate import alternates
from grun.targets.answer import own_answers


@dataclass(frozen=True, kw_only=True)
class AltpoConfig(ForgetLoss):
    """Prefer the model's own made-up answers to the forget answer (arXiv 2409.13474)."""

    targets: ClassVar[Targets] = {"answer": own_answers, "alternate": alternates}
    reference: ClassVar[Need | None] = "nll"
    mean_over: ClassVar[Unit] = "sequences"
    name: Literal["altpo"] = "altpo"
    beta: Annotated[float, Gt(0)] = 0.1
    """Inverse temperature: the larger, the less the model may move from where it was."""

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch. One alternate a step: over the epochs, the paper's mean over several."""
        return dpo_loss(forget["answer"].change_B, forget["alternate"].change_B, beta=self.beta)
