"""A causal LM with one edit at each of some layers, through pyvene."""

import contextlib
import io
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig

from pyvene_custom.editing import Editing, decoder_layers_path

with contextlib.redirect_stdout(io.StringIO()):  # it prints about optional backends
    import pyvene
logging.getLogger("pyvene").setLevel(logging.ERROR)


class EditIntervention(pyvene.SourcelessIntervention, pyvene.TrainableIntervention):
    """Leaves to the pass under way what becomes of its layer's whole output."""

    def __init__(self, layer: int, edit: nn.Module) -> None:
        super().__init__(keep_last_dim=True)
        self.layer = layer
        self.edit = edit  # its weights are pyvene's to train and to list
        self.editing: Editing | None = None

    def forward(self, base: Tensor, source: None = None, subspaces: None = None) -> Tensor:
        """base: hidden states [B, L, D]. `source` and `subspaces` are pyvene's, unused."""
        assert self.editing is not None, "GatedModel says which pass it is"
        return self.editing(self.layer, base)


class GatedModel(pyvene.IntervenableModel):
    """An IntervenableModel whose layers' outputs are edited as a pass says, which also keeps what the gates said."""

    def __init__(self, model: Any, edits: Mapping[int, nn.Module]) -> None:
        """edits: layer index → edit of that layer's output. Freezes the model's weights."""
        path = decoder_layers_path(model)
        representations = [
            pyvene.RepresentationConfig(
                component=f"{path}[{layer}].output", intervention=EditIntervention(layer, edits[layer])
            )
            for layer in sorted(edits)
        ]
        super().__init__(pyvene.IntervenableConfig(representations=representations), model)

    def forward(self, inputs: dict[str, Any], editing: Editing) -> Any:
        """The model's own output. inputs: its own arguments."""
        self._use(editing)
        _, outputs = super().forward(inputs)
        return outputs

    def generate(self, inputs: dict[str, Any], editing: Editing, **settings: Any) -> Tensor:
        """Greedy answers' token ids [B, L], prompts included. settings: of a `GenerationConfig`."""
        self._use(editing)
        generation = GenerationConfig(
            do_sample=False,  # whatever sampling the model's own defaults ask for
            pad_token_id=self.model.generation_config.pad_token_id,
            **settings,
        )
        _, sequences = super().generate(inputs, intervene_on_prompt=True, generation_config=generation)
        return sequences

    def _use(self, editing: Editing) -> None:
        for intervention in self.interventions.values():
            intervention.editing = editing
