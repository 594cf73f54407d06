"""Interventions on disk: one safetensors file, read back bit for bit. (pyvene's own `save` pickles.)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from pyvene_custom.interventions import LoReFT

WEIGHTS = "interventions.safetensors"


def save_interventions(folder: Path, interventions: Mapping[int, LoReFT]) -> None:
    """Write the weights of each layer's intervention; `folder` exists."""
    tensors = {
        f"{layer}.{name}": tensor.detach().cpu().contiguous()
        for layer, intervention in interventions.items()
        for name, tensor in intervention.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)


def load_interventions(folder: Path, interventions: Mapping[int, LoReFT]) -> None:
    """Fill freshly built interventions in place. Raises where layers, names or shapes differ."""
    tensors = load_file(folder / WEIGHTS)
    for layer, intervention in interventions.items():
        prefix = f"{layer}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        intervention.load_state_dict(own, strict=True)
