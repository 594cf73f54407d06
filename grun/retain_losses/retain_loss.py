"""What every retain loss says of itself; training asks this, and never which loss it is."""

from typing import ClassVar, Protocol

from torch import Tensor

from grun.losses import AnswerScores, Need, Positions


class RetainLoss(Protocol):
    """A frozen dataclass of settings. It is a mean over tokens, so that a batch can be cut into parts."""

    name: str
    """What it is called in configurations and results."""
    reference: ClassVar[Need | None] = None
    """What it needs of the untouched model on the retain items. `hidden`: at the forget loss's `hidden_layer`."""

    @property
    def positions(self) -> Positions:
        """Which tokens it is a mean over: the answers', or all of the sequences' (but each first one, which nothing
        predicts), for adapters that can change what is said of a prompt."""
        return "answer"

    def __call__(self, retain: AnswerScores) -> Tensor:
        """Scalar loss of one retain batch."""

    def next_weight(self, weight: float, loss: float) -> float:
        """Its weight in the next step, given what it weighed and came to in this one; before the first step it is
        `training.retain_weight`."""
        return weight
