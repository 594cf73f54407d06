"""Representation misdirection: hidden states of forget answers are steered to a random direction."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from grun.forget_losses.forget_loss import ForgetLoss
from grun.lm.layers import Layer
from grun.losses import ForgetScores, Positions
from grun.settings import LATER


@dataclass(frozen=True, kw_only=True)
class RmuConfig(ForgetLoss):
    """Move a layer's output on forget answers to a fixed random vector (arXiv 2403.03218)."""

    paper_retain_weight: ClassVar[float] = 1.0  # GRUN's; its own paper has one for each model, 350 for Llama-3.1-8B
    name: Literal["rmu"] = "rmu"
    layer: Layer = 1.0
    """Steered layer: its index from 0, or its relative depth in (0, 1] as a decimal. With edits: an edited layer or one
    above, and the last edited one or above if every edit is to learn. The published baseline steers 15 of 32: 0.5."""
    steering_coefficient: Annotated[float, Gt(0)] = 30.0
    """Length c of the vector. Published: 30 for Llama-3.1-8B, 27 for Mistral-7B."""
    steering_seed: int = 0
    """Seed of its direction u."""

    positions: Positions = field(default="answer", metadata=LATER)
    """Steered are the answers' tokens, or all but each first one, as in the authors' code. Not for edits."""

    @property
    def hidden_layer(self) -> Layer:
        """See `ForgetLoss`."""
        return self.layer

    def __call__(self, forget: ForgetScores) -> Tensor:
        """Scalar loss of one forget batch."""
        assert forget["answer"].hidden_ND is not None
        hidden_ND = forget["answer"].hidden_ND
        steering_D = steering_vector(hidden_ND.shape[1], self.steering_coefficient, self.steering_seed)
        return rmu_loss(hidden_ND, steering_D.to(hidden_ND.device))


def rmu_loss(hidden_ND: Tensor, steering_D: Tensor) -> Tensor:
    """Mean squared distance to the steering vector over tokens and dimensions: scalar."""
    return F.mse_loss(hidden_ND.float(), steering_D.expand_as(hidden_ND))


def steering_vector(hidden_size: int, coefficient: float, seed: int) -> Tensor:
    """c · u, u a random unit vector with no negative entry, as the authors draw it: [D]."""
    u_D = torch.rand(hidden_size, generator=torch.Generator().manual_seed(seed))
    return coefficient * u_D / u_D.norm()
