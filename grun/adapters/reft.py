"""Ungated LoReFT: GRUN's edit without its gate, applied to every prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen

from grun.adapters.adapter import Adapter
from grun.declared import declares
from grun.engine.edited import EditedModel, attach_edits
from grun.model.forward import CausalLM
from grun.model.layers import Layers
from pyvene_custom.checkpoint import load_edits, save_edits
from pyvene_custom.edits import LoReFT


@declares(Adapter)
@dataclass(frozen=True, kw_only=True)
class ReftConfig:
    """Edit the last prompt token's hidden state at a few layers (arXiv 2404.03592)."""

    trains: ClassVar[Literal[True]] = True
    trains_in_place: ClassVar[Literal[False]] = False
    is_small: ClassVar[Literal[True]] = True
    is_gated: ClassVar[Literal[False]] = False
    is_stackable: ClassVar[Literal[False]] = False
    edits: ClassVar[Literal["prompt_end"]] = "prompt_end"
    name: Literal["reft"] = "reft"
    learning_rate: Annotated[float, Gt(0)] = 4e-3
    """AdamW's peak learning rate. GRUN's value, so that the gate is the only difference."""
    layers: Annotated[Layers, MinLen(1)] = (21 / 32, 26 / 32, 1.0)
    """Edited layers: indices from 0, or relative depths in (0, 1] written as decimals."""
    rank: Annotated[int, Ge(1)] = 4
    """Rank of the edit."""

    def attach(self, model: CausalLM, seed: int) -> EditedModel:
        """Freeze the model and put a fresh edit on each layer."""
        return attach_edits(model, self.layers, seed, lambda size: LoReFT(hidden_size=size, rank=self.rank))

    def unload(self, adapted: EditedModel) -> CausalLM:
        """The model without the edits. It was never touched."""
        return adapted.model

    def save(self, adapted: EditedModel, folder: Path) -> None:
        """Write the edits (safetensors)."""
        save_edits(folder, adapted.edits)

    def load(self, model: CausalLM, folder: Path) -> EditedModel:
        """The model with the edits saved in `folder`, bit for bit."""
        adapted = self.attach(model, seed=0)
        load_edits(folder, adapted.edits)
        adapted.train(False)
        return adapted
