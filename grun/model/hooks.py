"""The whole model on a batch, edited by torch's own forward hooks: the least that an ordinary tool would do."""

from functools import partial
from typing import Any

from torch import nn

from grun.data import Batch
from grun.model.forward import CausalLM
from grun.model.patching import decoder_layers, output_tensor, with_output_tensor
from grun.model.reading import model_inputs
from pyvene_custom.editing import Editing


def through_hooks(model: CausalLM, batch: Batch, editing: Editing) -> Any:
    """The model's own output on the batch; `editing` keeps what the gates said."""

    def edit_output(layer: int, module: nn.Module, args: Any, output: Any) -> Any:
        return with_output_tensor(output, editing(layer, output_tensor(output)))

    layers = decoder_layers(model)
    handles = [layers[layer].register_forward_hook(partial(edit_output, layer)) for layer in editing.layers]
    try:
        return model(**model_inputs(batch))
    finally:
        for handle in handles:
            handle.remove()
