"""How a hidden state is edited: LoReFT, behind a gate or without one.

Shapes: B prompts, T edited positions of each, D hidden size, R rank, K requests.
"""

from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyvene_custom.gate_functions import GateFunction, new_gate
from pyvene_custom.gates import Gate

WEIGHTS = "edits.safetensors"


class _OrthonormalRows(nn.Module):
    """Any full-rank [R, D] matrix → the orthonormal rows that span the same space, through a QR.

    Unlike torch's householder map it has no cliff: scaling the parameter (weight decay) changes nothing.
    """

    def forward(self, weight_RD: Tensor) -> Tensor:
        q_DR, r_RR = torch.linalg.qr(weight_RD.T)
        # QR leaves the signs of Q's columns open; fixing diag(r) > 0 makes the map continuous.
        return (q_DR * torch.sign(torch.diagonal(r_RR))).T

    def right_inverse(self, rows_RD: Tensor) -> Tensor:
        return rows_RD


class Edit(Protocol):
    """What may be done to one layer's output; a `torch.nn.Module`, of one request or of K together."""

    def read(self, h_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """How much of the edit each prompt gets, [B, K], and the gate logits [B, K], None without a gate.

        h_BD: the layer's output at the prompts' last tokens, or what a late gate reads.
        """

    @property
    def reads_mean(self) -> bool:
        """Whether its gates read the mean over a prompt's tokens."""

    def edited(self, h_BTD: Tensor, weight_BK: Tensor) -> Tensor:
        """T positions of each prompt with so much of the edit in, in h's own dtype; a weight of 0 leaves every bit."""


class Gated(nn.Module):
    """Something that is done to a prompt as far as a gate is open to it, or always where there is no gate."""

    gate: Gate | None
    gate_threshold: float = 0.0
    """Inference only: where the gate is below it, nothing is done."""
    forced_open: bool | None = None
    """Inference only: treat every prompt's gate as open, or as shut, whatever the threshold. None: neither."""

    @property
    def reads_mean(self) -> bool:
        """See `Edit`."""
        return self.gate is not None and self.gate.reads_mean

    def read(self, h_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Edit`."""
        if self.gate is None:
            return torch.ones((len(h_BD), 1), device=h_BD.device), None
        logit_B1 = self.gate.logit(h_BD)
        gate_B1 = torch.sigmoid(logit_B1)
        weight_B1 = self.gate.opened(gate_B1)
        if self.training or self.forced_open:
            return weight_B1, logit_B1
        if self.forced_open is False:
            return torch.zeros_like(weight_B1), logit_B1
        return weight_B1 * (gate_B1 >= self.gate_threshold), logit_B1


class LoReFT(Gated):
    """h' = h + g · Rᵀ(W h + b − R h), the rows of R orthonormal, g = sigmoid(gate(h)), or 1 without a gate.

    Eq. 2 of arXiv 2404.03592; the gate: GRUN, arXiv 2502.17823.
    """

    def __init__(self, *, hidden_size: int, rank: int, gate_function: GateFunction | None) -> None:
        super().__init__()
        self.rotation = nn.Linear(hidden_size, rank, bias=False)
        nn.init.orthogonal_(self.rotation.weight)
        parametrize.register_parametrization(self.rotation, "weight", _OrthonormalRows())
        self.learned_source = nn.Linear(hidden_size, rank)
        self.gate = None if gate_function is None else new_gate(gate_function, hidden_size)

    def difference(self, h_BTD: Tensor) -> Tensor:
        """What a full edit adds, in float32: [B, T, D]."""
        rotation_RD = self.rotation.weight
        h_BTD = h_BTD.to(rotation_RD.dtype)
        return (self.learned_source(h_BTD) - h_BTD @ rotation_RD.T) @ rotation_RD

    def edited(self, h_BTD: Tensor, weight_BK: Tensor) -> Tensor:
        """See `Edit`."""
        weight_B11 = weight_BK[:, None]
        edited_BTD = (h_BTD + weight_B11 * self.difference(h_BTD)).to(h_BTD.dtype)
        return edited_BTD if self.training else torch.where(weight_B11 > 0, edited_BTD, h_BTD)


def save_edits(folder: Path, edits: nn.ModuleDict) -> None:
    """Write every edit's weights under its layer's name; `folder` exists. (pyvene's own `save` pickles.)"""
    save_file({name: tensor.cpu().contiguous() for name, tensor in edits.state_dict().items()}, folder / WEIGHTS)


def load_edits(folder: Path, edits: nn.ModuleDict) -> None:
    """Fill freshly built edits in place, bit for bit. Raises where layers, names or shapes differ."""
    edits.load_state_dict(load_file(folder / WEIGHTS), strict=True)
