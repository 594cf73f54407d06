"""Edits on disk: one safetensors file, read back bit for bit. (pyvene's own `save` pickles.)"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = "edits.safetensors"


def save_edits(folder: Path, edits: nn.ModuleDict) -> None:
    """Write every edit's weights under its layer's name; `folder` exists."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in edits.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def load_edits(folder: Path, edits: nn.ModuleDict) -> None:
    """Fill freshly built edits in place. Raises where layers, names or shapes differ."""
    edits.load_state_dict(load_file(folder / WEIGHTS), strict=True)
