"""A causal LM with one edit at each of some layers, through pyvene.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyvene_custom.editing import Editing
from pyvene_custom.interventions import EditIntervention
from pyvene_custom.quiet import pyvene


def decoder_layers_path(model: Any) -> str:
    """Dotted path of the decoder's list of layers, e.g. `model.layers` or `transformer.h`.

    model: a `transformers` causal LM. Raises ValueError where no list has one entry a layer.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return path
    raise ValueError(f"no list of {num_layers} decoder layers in {type(model).__name__}")


class GatedModel(pyvene.IntervenableModel):
    """An IntervenableModel whose layers' outputs are edited as a pass says, which also keeps what the gates said."""

    def __init__(self, model: Any, edits: Mapping[int, nn.Module]) -> None:
        """edits: layer index → edit of that layer's output. Freezes the model's weights."""
        path = decoder_layers_path(model)
        super().__init__(
            pyvene.IntervenableConfig(
                representations=[
                    pyvene.RepresentationConfig(
                        component=f"{path}[{layer}].output", intervention=EditIntervention(layer, edits[layer])
                    )
                    for layer in sorted(edits)
                ]
            ),
            model,
        )

    def forward(self, inputs: dict[str, Any], editing: Editing) -> Any:
        """The model's own output. inputs: its own arguments."""
        self._use(editing)
        _, outputs = super().forward(inputs)
        return outputs

    def generate(self, inputs: dict[str, Any], editing: Editing, **generation: Any) -> Tensor:
        """Token ids [B, L], prompts included. generation: arguments of the model's own `generate`."""
        self._use(editing)
        _, sequences = super().generate(inputs, intervene_on_prompt=True, **generation)
        return sequences

    def _use(self, editing: Editing) -> None:
        for intervention in self.interventions.values():
            intervention.editing = editing
