"""A causal LM with one edit at each of some layers, on one position of every prompt, through pyvene.

Shapes: B sequences, K edited layers, in the order the forward pass meets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
    """An IntervenableModel whose forward and generate also return the gates, layer by layer."""

    def __init__(self, model: Any, edits: Mapping[int, nn.Module]) -> None:
        """edits: layer index → edit of that layer's output. Freezes the model's weights."""
        path = decoder_layers_path(model)
        layers = sorted(edits)
        super().__init__(
            pyvene.IntervenableConfig(
                representations=[
                    pyvene.RepresentationConfig(
                        component=f"{path}[{layer}].output", intervention=EditIntervention(edits[layer])
                    )
                    for layer in layers
                ]
            ),
            model,
        )
        self.num_edits = len(layers)

    def forward(self, inputs: dict[str, Any], edited_position_B: Tensor) -> tuple[Any, Tensor | None]:
        """inputs: the model's own arguments. Returns (the model's output, gate logits [B, K] or None)."""
        _, outputs = super().forward(inputs, unit_locations=self._unit_locations(edited_position_B.tolist()))
        return outputs, self._gate_logits()

    def generate(self, inputs: dict[str, Any], **generation: Any) -> tuple[Tensor, Tensor | None]:
        """Left-padded prompts, edited at their last token and never while decoding.

        generation: arguments of the model's own `generate`. Returns (token ids [B, L], gate logits [B, K]).
        """
        batch, length = inputs["input_ids"].shape
        self.full_intervention_outputs.clear()
        _, sequences = super().generate(
            inputs,
            unit_locations=self._unit_locations([length - 1] * batch),
            intervene_on_prompt=True,
            **generation,
        )
        return sequences, self._gate_logits()

    def _unit_locations(self, positions: Sequence[int]) -> dict[str, Any]:
        return {"base": [[[position] for position in positions]] * self.num_edits}

    def _gate_logits(self) -> Tensor | None:
        logits = [output.latent for output in self.full_intervention_outputs]
        if logits[0] is None:
            return None
        return torch.cat(logits, dim=1)
