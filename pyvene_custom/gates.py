"""Gates: how far a prompt's hidden state opens the way for an edit. One class a kind, named in `gate_functions`.

Shapes: B prompts, D hidden size, K gates, I and O a gate layer's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn


class Gates(Protocol):
    """One gate, or several of a kind side by side; a `torch.nn.Module`."""

    def logit(self, h_BD: Tensor) -> Tensor:
        """How open each gate is to each prompt, before the sigmoid: [B, K], float32."""

    def opened(self, gate_BK: Tensor) -> Tensor:
        """How much of the edits is let through by gates above their threshold, [B, K]: by sigmoid(logit)."""


class Gate(Gates, Protocol):
    """One gate."""

    is_fitted: ClassVar[bool]
    """Whether `fit` settles it, in closed form; otherwise it is trained with the edit behind it."""
    reads_mean: ClassVar[bool]
    """Whether it reads the mean over the prompt's tokens in place of the last one, of the untouched model."""

    def fit(self, h_BD: Tensor, is_forget_B: Tensor) -> None:
        """Open for the prompts that are to be forgotten, and for no other. Does nothing where the gate is trained.

        h_BD: what it reads of the untouched model's hidden states. is_forget_B: bool.
        """

    @staticmethod
    def stack(gates: Sequence[Gate]) -> Gates:
        """The gates of several requests as one. Raises ValueError where they are not of one shape."""


class TrainedGate(nn.Sequential):
    """A linear map, or an MLP, to one logit. GRUN, arXiv 2502.17823."""

    is_fitted: ClassVar[bool] = False
    reads_mean: ClassVar[bool] = False

    def __init__(self, hidden_size: int, hidden_widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((hidden_size, *hidden_widths, 1)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers[:-1])

    def logit(self, h_BD: Tensor) -> Tensor:
        """See `Gates`."""
        return self(h_BD.float())

    def opened(self, gate_BK: Tensor) -> Tensor:
        """See `Gates`. As far as the gate itself is open."""
        return gate_BK

    def fit(self, h_BD: Tensor, is_forget_B: Tensor) -> None:
        """See `Gate`."""

    @staticmethod
    def stack(gates: Sequence[Gate]) -> Gates:
        """See `Gate`."""
        return _StackedGates(gates)


class _StackedGates(nn.Module):
    """Several trained gates of one shape, their layers side by side: one product a layer."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        super().__init__()
        trained = [gate for gate in gates if isinstance(gate, TrainedGate)]
        linear = [[part for part in gate if isinstance(part, nn.Linear)] for gate in trained]
        if len(trained) < len(gates) or len({tuple(part.weight.shape for part in parts) for parts in linear}) > 1:
            raise ValueError("gates differ in their shapes")
        self.num_layers = len(linear[0])
        with torch.no_grad():
            for level, parts in enumerate(zip(*linear, strict=True)):
                self.register_buffer(f"weight_KOI_{level}", torch.stack([part.weight for part in parts]))
                self.register_buffer(f"bias_KO_{level}", torch.stack([part.bias for part in parts]))

    def logit(self, h_BD: Tensor) -> Tensor:
        """See `Gates`."""
        weight_KOI, bias_KO = self._layer(0)
        x_BKO = (h_BD.float() @ weight_KOI.flatten(0, 1).T).view(len(h_BD), *bias_KO.shape) + bias_KO
        for level in range(1, self.num_layers):
            weight_KOI, bias_KO = self._layer(level)
            x_BKO = torch.einsum("bki,koi->bko", torch.relu(x_BKO), weight_KOI) + bias_KO
        return x_BKO[..., 0]

    def opened(self, gate_BK: Tensor) -> Tensor:
        """See `Gates`."""
        return gate_BK

    def _layer(self, level: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"weight_KOI_{level}"), self.get_buffer(f"bias_KO_{level}")
