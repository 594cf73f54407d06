"""What the adapters that edit hidden states share: putting fresh edits on a model, and keeping them."""

from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch

from grun.adapters.adapter import Adapter
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.lm.layers import Layer, Layers, layer_index, layer_indices
from grun.model.forward import CausalLM
from pyvene_custom.editing import Edits
from pyvene_custom.edits import LoReFT, load_edits, save_edits
from pyvene_custom.gate_functions import GateFunction


class Edited(Adapter, Protocol):
    """An adapter whose model is an EditedModel, of which the edits are kept."""

    trains_in_place: ClassVar[Literal[False]] = False

    def attach(self, model: CausalLM, seed: int) -> EditedModel:
        """See `Adapter`."""

    def save(self, adapted: EditedModel, folder: Path) -> None:
        """Write gates and edits (safetensors)."""
        save_edits(folder, adapted.edits)

    def load(self, model: CausalLM, folder: Path) -> EditedModel:
        """The model with the gates and edits saved in `folder`, bit for bit, at this config's threshold."""
        adapted = self.attach(model, seed=0)
        load_edits(folder, adapted.edits)
        adapted.train(False)
        return adapted


class GatedEdited(Edited, Protocol):
    """And whose edits are behind gates, so that those of several requests go together."""

    is_gated: ClassVar[Literal[True]] = True
    is_stackable: ClassVar[Literal[True]] = True


def attach_edits(
    model: CausalLM,
    layers: Layers,
    where: Edits,
    *,
    rank: int,
    gate_function: GateFunction | None,
    gate_layer: Layer | None,
    seed: int,
) -> EditedModel:
    """Freeze the model and put a fresh edit on each layer; its random initial values come from `seed` alone.

    Raises UserError where the model has no such layer, or fewer dimensions than the edit is to have.
    """
    config = model.config.get_text_config()
    if rank > config.hidden_size:
        raise UserError("adapter.rank", f"{rank} is more than the hidden size; use at most {config.hidden_size}")
    indices = layer_indices(layers, config.num_hidden_layers)
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        edits = {
            index: LoReFT(hidden_size=config.hidden_size, rank=rank, gate_function=gate_function) for index in indices
        }
    if gate_layer is None and any(edit.gate is not None and edit.gate.is_fitted for edit in edits.values()):
        gate_layer = 1.0  # it is fitted to the untouched model, which is no more what it was above the first edit
    at = None if gate_layer is None else layer_index(gate_layer, config.num_hidden_layers, "adapter.gate_layer")
    return EditedModel(model, edits, where, at)
