"""A frozen causal LM with ReFT or GRUN edits on the last prompt token: forward, generate, save, load.

Shapes: B sequences, K edited layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from grun.data import Batch
from grun.errors import UserError
from grun.forward import (
    AnswerOutput,
    CausalLM,
    Generated,
    answer_positions_only,
    greedy,
    left_padded,
    model_inputs,
    new_tokens,
)

if TYPE_CHECKING:
    from pyvene_custom.interventions import LoReFT

LayerIndex = Annotated[int, Ge(0)]
RelativeDepth = Annotated[float, Gt(0), Le(1)]
Layers = tuple[LayerIndex, ...] | tuple[RelativeDepth, ...]


def layer_indices(layers: Layers, num_layers: int) -> tuple[int, ...]:
    """Layers by index, or by relative depth in (0, 1] (1.0 is the last layer), as sorted distinct indices.

    Depth d means layer round(d · num_layers) − 1, so 21/32, 26/32 and 1.0 are the paper's 20, 25, 31 of 32.
    On a shallow model two depths may meet in one layer, which is then edited once.
    Raises UserError where an index is beyond the model.
    """
    if all(isinstance(layer, float) for layer in layers):
        return tuple(sorted({max(round(depth * num_layers), 1) - 1 for depth in layers}))
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise UserError(
                "adapter.layers", f"layer {layer} is beyond the model's {num_layers}; use 0 to {num_layers - 1}"
            )
    return tuple(sorted({int(layer) for layer in layers}))


class EditedModel:
    """A frozen model and its interventions, one a layer. The edit sits on the last prompt token only."""

    def __init__(self, model: CausalLM, interventions: Mapping[int, LoReFT]) -> None:
        from pyvene_custom.gated_model import GatedModel

        self.model = model
        self.interventions = dict(sorted(interventions.items()))
        self._gated = GatedModel(model, self.interventions)

    @property
    def device(self) -> torch.device:
        """See `grun.forward.Adapted`."""
        return self.model.device

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the edited layers, ascending."""
        return tuple(self.interventions)

    def answer_output(self, batch: Batch) -> AnswerOutput:
        """See `grun.forward.Adapted`."""
        with answer_positions_only(self.model, batch):
            outputs, gate_logit_BK = self._gated(model_inputs(batch), batch.edited_position_B)
        return AnswerOutput(logits_NV=outputs.logits[0], gate_logit_BK=gate_logit_BK)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Generated:
        """See `grun.forward.Adapted`."""
        inputs = left_padded(prompts, self.model)
        sequences_BL, gate_logit_BK = self._gated.generate(inputs, generation_config=greedy(self.model, max_new_tokens))
        return Generated(answers=new_tokens(sequences_BL, inputs, self.model), gate_logit_BK=gate_logit_BK)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """See `grun.forward.Adapted`."""
        return [p for intervention in self.interventions.values() for p in intervention.parameters()]

    def train(self, mode: bool) -> None:
        """Training only concerns the edits: the frozen model stays in evaluation mode."""
        self.model.eval()
        for intervention in self.interventions.values():
            intervention.train(mode)


def attach_edits(model: CausalLM, layers: Layers, seed: int, new_intervention: Callable[[int], LoReFT]) -> EditedModel:
    """Freeze the model and put a fresh intervention on each layer.

    new_intervention: hidden size → intervention; its random initial values come from `seed` alone.
    """
    config = model.config.get_text_config()
    indices = layer_indices(layers, config.num_hidden_layers)
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EditedModel(model, {index: new_intervention(config.hidden_size) for index in indices})


def save_edits(adapted: EditedModel, folder: Path) -> None:
    """Write the interventions."""
    from pyvene_custom.checkpoint import save_interventions

    save_interventions(folder, adapted.interventions)


def load_edits(adapted: EditedModel, folder: Path) -> EditedModel:
    """Fill a freshly attached model's interventions from `folder`, bit for bit."""
    from pyvene_custom.checkpoint import load_interventions

    load_interventions(folder, adapted.interventions)
    adapted.train(False)
    return adapted
