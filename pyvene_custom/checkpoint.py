"""Interventions on disk: one safetensors file and one JSON file a folder, read back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from pyvene_custom.interventions import LoReFT

WEIGHTS = "interventions.safetensors"
DESCRIPTION = "interventions.json"


def save_interventions(folder: Path, interventions: Mapping[int, LoReFT], description: Mapping[str, Any]) -> None:
    """Write the weights of each layer's intervention, and what is needed to build them again.

    description: anything JSON can hold; `read_description` returns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.{name}": tensor.detach().cpu().contiguous()
        for layer, intervention in interventions.items()
        for name, tensor in intervention.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """The description a folder was saved with. Raises OSError or JSONDecodeError where it is unreadable."""
    return json.loads((folder / DESCRIPTION).read_text())


def load_interventions(folder: Path, interventions: Mapping[int, LoReFT]) -> None:
    """Fill freshly built interventions in place. Raises where layers, names or shapes differ."""
    tensors = load_file(folder / WEIGHTS)
    for layer, intervention in interventions.items():
        prefix = f"{layer}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        intervention.load_state_dict(own, strict=True)
