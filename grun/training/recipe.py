"""Everything that decides a training but the model and the data."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Lt

from grun.adapters import AdapterConfig
from grun.attacks.relearning import AgainstRelearningConfig
from grun.forget_losses.forget_loss import ForgetLoss
from grun.losses import Need
from grun.retain_losses.retain_loss import RetainLoss
from grun.settings import LATER

Schedule = Literal["linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run of the loop. The learning rate belongs to the adapter, which knows its scale."""

    num_epochs: Annotated[int, Ge(1)] = 5
    """Passes over the forget set; every step pairs each forget item with a retain item."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Forget items a step; as many retain items come on top."""
    forget_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the forget loss."""
    retain_weight: Annotated[float, Ge(0)] | None = None
    """Weight of the retain loss. None: the forget loss's own paper's, or the adapter's where it has one."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's decoupled weight decay."""
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the steps over which the learning rate rises to its peak; then it falls linearly to 0, or stays."""
    schedule: Schedule = field(default="linear", metadata=LATER)
    """Whether the learning rate falls to 0 behind the warm-up, or stays at its peak, as in RMU's own code."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradients of a larger joint norm are scaled down to it."""
    fixed_partners: bool = field(default=False, metadata=LATER)
    """Each forget item meets the same retain item in all epochs, as in GRUN's own code; else a new one each time."""
    corpora_in_turn: bool = field(default=False, metadata=LATER)
    """Where the forget set is of several corpora, each step is of one, in turn, as in RMU's own code."""
    max_retain_loss: Annotated[float, Gt(0)] | None = None
    """Training ends early once the retain loss, its mean over an epoch, is larger: such a model is lost, and the
    rest of a trial's time with it. None: never."""
    against_relearning: AgainstRelearningConfig | None = field(default=None, metadata=LATER)
    """grun, reft: train against somebody who relearns the forget set meanwhile. None: nobody does."""

    def resolved(self, forget_loss: ForgetLoss, adapter: AdapterConfig, taught_at: float) -> Self:
        """The same with the papers' retain_weight and an attacker's learning rates filled in where they are None.

        taught_at: the learning rate that the model was taught with.
        """
        weight, against = self.retain_weight, self.against_relearning
        if weight is None:
            weight = adapter.paper_retain_weights.get(forget_loss.name, forget_loss.paper_retain_weight)
        if against is not None and against.learning_rates is None:
            against = replace(against, learning_rates=(taught_at, taught_at / 10))
        return replace(self, retain_weight=weight, against_relearning=against)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How something is unlearned."""

    forget_loss: ForgetLoss
    retain_loss: RetainLoss
    training: TrainingConfig
    learning_rate: float
    """Its peak."""
    gate_weight: float = 0.0
    """Weight of the gate loss; where there are no gates it weighs nothing."""
    gate_warmup_steps: int = 0
    """Steps over which forget and retain loss grow from 0 to full weight."""
    max_false_openings: float | None = None
    """Share of kept prompts that may open a gate; a fifth of the retain set is held back for it. None: none is."""
    seed: int = 0
    """Of the items' order and of dropout."""

    @property
    def retain_weight(self) -> float:
        """That of the first step."""
        given = self.training.retain_weight
        return self.forget_loss.paper_retain_weight if given is None else given

    @property
    def needs(self) -> list[Need]:
        """What the losses need of the untouched model."""
        return [loss.reference for loss in (self.forget_loss, self.retain_loss) if loss.reference is not None]

    def weights(self, step: int, retain_weight: float) -> tuple[float, float, float]:
        """Of the forget, the retain and the gate loss in a step, counted from 1. The gates are never warmed up."""
        warm = min(1.0, step / self.gate_warmup_steps) if self.gate_warmup_steps else 1.0
        return warm * self.training.forget_weight, warm * retain_weight, self.gate_weight

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """In a step, counted from 1."""
        return self.learning_rate * learning_rate_share(
            step - 1, num_steps, self.training.warmup_fraction, self.training.schedule
        )


def learning_rate_share(
    steps_done: int, num_steps: int, warmup_fraction: float, schedule: Schedule = "linear"
) -> float:
    """Learning rate as a share of its peak: linear up over the warm-up; after it linear down to 0, or constant."""
    warmup_steps = warmup_fraction * num_steps
    if steps_done + 1 < warmup_steps:
        return (steps_done + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return min(1.0, max(0.0, (num_steps - steps_done) / (num_steps - warmup_steps)))
