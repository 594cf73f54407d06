"""What every forget loss says of itself; training asks this, and never which loss it is."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from grun.lm.layers import Layer
from grun.losses import ForgetScores, Need, Positions, Unit
from grun.targets.answer import own_answers
from grun.targets.target import Target

Targets = Mapping[str, Target]
"""Name → target, in the order of a forward pass."""


class ForgetLoss(Protocol):
    """A frozen dataclass of settings; it says where it departs from what most are."""

    name: str
    """What it is called in configurations and results."""
    targets: ClassVar[Targets] = {"answer": own_answers}
    """What the forget items are made to say, under the names that the loss finds it by."""
    reference: ClassVar[Need | None] = None
    """What it needs of the untouched model on its targets."""
    paper_retain_weight: ClassVar[float] = 1.0
    """`training.retain_weight` where none is given: what its own paper weighs the retain loss with, the forget loss
    weighing 1."""

    @property
    def mean_over(self) -> Unit:
        """What it is a mean over, so that a batch can be cut into parts."""
        return "tokens"

    @property
    def positions(self) -> Positions:
        """Which tokens it looks at: the answers', or all of the sequences', as `RetainLoss.positions`."""
        return "answer"

    @property
    def hidden_layer(self) -> Layer | None:
        """The layer whose output it looks at, and a retain loss with it; None: none."""
        return None

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
