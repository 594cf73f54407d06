"""One pass of an edited model: gates are read where each prompt ends, and the edit is put in there, or from there on.

Shapes: B prompts, L columns of the pass, D hidden size, K gates of all edited layers, in the order of the layers.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyvene_custom.edits import Edit

Edits = Literal["prompt_end", "answer"]
"""Which positions are edited: a prompt's last token; or that and all that follow it, by what the gate said there."""


class Editing:
    """What happens to the layers' outputs in one pass, and in those that decode the prompts' answers after it."""

    def __init__(
        self,
        edits: Mapping[int, Edit],
        where: Edits = "prompt_end",
        prompt_end_B: Tensor | None = None,
        kept_layer: int | None = None,
        gate_hidden_BD: Tensor | None = None,
    ) -> None:
        """edits: by layer. prompt_end_B: column of each prompt's last token; None: the first one.

        kept_layer: whose output to keep. gate_hidden_BD: what all gates read; None: each the output that it edits.
        """
        self._edits, self._where, self._prompt_end_B, self._kept_layer = edits, where, prompt_end_B, kept_layer
        self._gate_hidden_BD = gate_hidden_BD
        self.layers = tuple(sorted(edits))
        self._weights: dict[int, Tensor] = {}
        self._logits: list[Tensor] = []
        self.kept_BLD: Tensor | None = None
        """The kept layer's output, its edit in."""

    def __call__(self, layer: int, hidden_BLD: Tensor) -> Tensor:
        """A layer's output with its edit in; the layers are met from the bottom up."""
        if layer in self._weights:  # read already: what follows is decoded
            if self._where == "answer":
                hidden_BLD = self._edits[layer].edited(hidden_BLD, self._weights[layer])
        elif layer in self._edits:
            hidden_BLD = self._edit(layer, hidden_BLD)
        if layer == self._kept_layer:
            self.kept_BLD = hidden_BLD
        return hidden_BLD

    def concerns(self, layer: int) -> bool:
        """Whether anything is done with a layer's output."""
        return layer in self._edits or layer == self._kept_layer

    @property
    def is_at_ends(self) -> bool:
        """Whether nothing is done, or looked at, but where prompts end."""
        return self._where == "prompt_end" and self._kept_layer is None

    def layers_while_decoding(self) -> list[int]:
        """Where there is something to do after the prompts' own pass, for any of them."""
        return [layer for layer, weight_BK in self._weights.items() if self._where == "answer" and weight_BK.any()]

    def keep(self, row_B: Tensor) -> None:
        """Go on with these of the prompts alone."""
        self._weights = {layer: weight_BK[row_B] for layer, weight_BK in self._weights.items()}

    def gate_logit_BK(self) -> Tensor | None:
        """What the gates said at the end of each prompt; None where the edits have none."""
        return torch.cat(self._logits, dim=1) if self._logits else None

    def _edit(self, layer: int, hidden_BLD: Tensor) -> Tensor:
        edit, end_B = self._edits[layer], self._prompt_end_B
        rows_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
        at_end_BD = hidden_BLD[:, 0] if end_B is None else hidden_BLD[rows_B, end_B]
        self._weights[layer], logit_BK = edit.read(at_end_BD if self._gate_hidden_BD is None else self._gate_hidden_BD)
        if logit_BK is not None:
            self._logits.append(logit_BK)
        if self._where == "answer":
            edited_BLD = edit.edited(hidden_BLD, self._weights[layer])
            if end_B is None:
                return edited_BLD
            is_later_BL = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device) >= end_B[:, None]
            return torch.where(is_later_BL[..., None], edited_BLD, hidden_BLD)
        edited_B1D = edit.edited(at_end_BD[:, None], self._weights[layer])
        if end_B is None:
            return torch.cat([edited_B1D, hidden_BLD[:, 1:]], dim=1)
        return hidden_BLD.index_put((rows_B, end_B), edited_B1D[:, 0])


def decoder_layers_path(model: Any) -> str:
    """Dotted path of the decoder's list of layers, e.g. `model.layers` or `transformer.h`.

    model: a `transformers` causal LM. Raises ValueError where no list has one entry a layer.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return str(path)
    raise ValueError(f"no list of {num_layers} decoder layers in {type(model).__name__}")
