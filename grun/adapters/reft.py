"""Ungated LoReFT: GRUN's edit without its gate, applied to every prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen

from grun.adapters.adapter import Ungated
from grun.adapters.attaching import Edited, attach_edits
from grun.engine.edited import EditedModel
from grun.lm.layers import Layers
from grun.model.forward import CausalLM
from grun.settings import LATER
from pyvene_custom.editing import Edits


@dataclass(frozen=True, kw_only=True)
class ReftConfig(Edited, Ungated):
    """Edit the last prompt token's hidden state at a few layers (arXiv 2404.03592)."""

    paper_retain_weights: ClassVar[Mapping[str, float]] = {"grad_ascent": 2.0}  # as GRUN's
    name: Literal["reft"] = "reft"
    learning_rate: Annotated[float, Gt(0)] = 4e-3
    """AdamW's peak learning rate. GRUN's value, so that the gate is the only difference."""
    layers: Annotated[Layers, MinLen(1)] = (21 / 32, 26 / 32, 1.0)
    """Edited layers: indices from 0, or relative depths in (0, 1] written as decimals."""
    rank: Annotated[int, Ge(1)] = 4
    """Rank of the edit."""
    edits: Edits = field(default="prompt_end", metadata=LATER)
    """Edited positions: the last prompt token, as in the paper; `answer`: that and every token of the answer."""

    def attach(self, model: CausalLM, seed: int) -> EditedModel:
        """Freeze the model and put a fresh edit on each layer."""
        return attach_edits(
            model, self.layers, self.edits, rank=self.rank, gate_function=None, gate_layer=None, seed=seed
        )
