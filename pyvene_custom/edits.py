"""LoReFT and gated LoReFT: how a hidden state is edited. Plain torch.

Shapes: P edited positions, D hidden size, R rank. Everything before D is a batch dimension.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

GateFunction = Literal["linear", "mlp_3", "mlp_5"]
GATE_HIDDEN_WIDTHS: dict[str, tuple[int, ...]] = {
    "linear": (),
    "mlp_3": (256, 64),
    "mlp_5": (1024, 512, 256, 64),
}


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


class LoReFT(nn.Module):
    """h' = h + Rᵀ(W h + b − R h), the rows of R orthonormal. Eq. 2 of arXiv 2404.03592."""

    def __init__(self, *, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.rotation = nn.Linear(hidden_size, rank, bias=False)
        nn.init.orthogonal_(self.rotation.weight)
        parametrize.register_parametrization(self.rotation, "weight", _OrthonormalRows())
        self.learned_source = nn.Linear(hidden_size, rank)

    def difference(self, h_PD: Tensor) -> Tensor:
        """What a full edit adds, in float32: [P, D]."""
        rotation_RD = self.rotation.weight
        h_PD = h_PD.to(rotation_RD.dtype)
        return (self.learned_source(h_PD) - h_PD @ rotation_RD.T) @ rotation_RD

    def forward(self, h_PD: Tensor) -> tuple[Tensor, Tensor | None]:
        """The edited hidden states [P, D], in h's own dtype, and None for the gate it has not."""
        return (h_PD + self.difference(h_PD)).to(h_PD.dtype), None


class GatedLoReFT(LoReFT):
    """h' = h + g(h) · Rᵀ(W h + b − R h), g = sigmoid(gate(h)). GRUN, arXiv 2502.17823.

    gate_threshold applies at inference only: where g is below it the edit is skipped, so h' is h bit for bit.
    """

    def __init__(self, *, hidden_size: int, rank: int, gate_function: GateFunction) -> None:
        super().__init__(hidden_size=hidden_size, rank=rank)
        widths = (hidden_size, *GATE_HIDDEN_WIDTHS[gate_function], 1)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.gate = nn.Sequential(*layers[:-1])
        self.gate_threshold = 0.0
        self.forced_open: bool | None = None
        """Inference only: treat every prompt's gate as open, or as shut, whatever the threshold. None: neither."""

    def gate_logit(self, h_PD: Tensor) -> Tensor:
        """How open the gate is, before the sigmoid: [P, 1], float32."""
        return self.gate(h_PD.to(self.learned_source.weight.dtype))

    def forward(self, h_PD: Tensor) -> tuple[Tensor, Tensor | None]:
        """The edited hidden states [P, D], in h's own dtype, and the gate logits [P, 1]."""
        logit_P1 = self.gate_logit(h_PD)
        gate_P1 = torch.sigmoid(logit_P1)
        edited_PD = (h_PD + gate_P1 * self.difference(h_PD)).to(h_PD.dtype)
        if self.training or self.forced_open:
            return edited_PD, logit_P1
        if self.forced_open is False:
            return h_PD, logit_P1
        if self.gate_threshold > 0:
            edited_PD = torch.where(gate_P1 >= self.gate_threshold, edited_PD, h_PD)
        return edited_PD, logit_P1
