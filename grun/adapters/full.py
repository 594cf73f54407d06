"""Full fine-tuning: every weight is trained; embeddings and LM head only if asked."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from safetensors.torch import load_file, save_file
from torch import nn

from grun.adapters.adapter import Adapter
from grun.errors import UserError
from grun.lm.layers import Layers, layer_indices
from grun.lm.patching import decoder_layers
from grun.model.forward import CausalLM, PlainModel
from grun.settings import LATER
from grun.sharding import whole

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class FullConfig(Adapter):
    """Train the weights themselves."""

    trains_in_place: ClassVar[Literal[True]] = True
    is_gated: ClassVar[Literal[False]] = False
    is_stackable: ClassVar[Literal[False]] = False
    is_small: ClassVar[bool] = False
    name: Literal["full"] = "full"
    learning_rate: Annotated[float, Gt(0)] = 1e-5
    """AdamW's peak learning rate. TOFU's value for 7B models (arXiv 2401.06121)."""
    train_embeddings: bool = False
    """Also train the token embeddings and the LM head."""

    layers: Layers | None = None
    """Train only these decoder layers, by index or relative depth (the RMU baseline: 13 to 15 of 32). None: all."""
    modules: tuple[str, ...] | None = field(default=None, metadata=LATER)
    """Of these layers, train only what is called so, e.g. `mlp.down_proj` (the RMU baseline). None: all of them."""

    def attach(self, model: CausalLM, seed: int) -> PlainModel:
        """The model itself, its trainable weights marked. Nothing is initialised, so `seed` changes nothing.

        Raises UserError where a layer has no such module.
        """
        is_whole = self.layers is None and self.modules is None
        model.requires_grad_(is_whole)
        stack = nn.ModuleList() if is_whole else decoder_layers(model)
        chosen = range(len(stack)) if self.layers is None else layer_indices(self.layers, len(stack))
        for index, name in itertools.product(chosen, self.modules or ("",)):  # "": the layer itself
            try:
                stack[index].get_submodule(name).requires_grad_(True)
            except AttributeError:
                raise UserError("adapter.modules", f"a layer of this model has no {name}; name another") from None
        model.get_input_embeddings().requires_grad_(self.train_embeddings)
        model.get_output_embeddings().requires_grad_(self.train_embeddings)
        return PlainModel(model)

    def save(self, adapted: PlainModel, folder: Path) -> None:
        """Write the trained weights, and only those."""
        trained = {n: whole(p).detach().cpu() for n, p in adapted.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / WEIGHTS)

    def load(self, model: CausalLM, folder: Path) -> PlainModel:
        """The model with the trained weights of `folder` in place of its own, bit for bit."""
        adapted = self.attach(model, seed=0)
        model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        adapted.train(False)
        return adapted
