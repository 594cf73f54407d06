"""LoRA behind a gate: on for the prompts that the gate holds to be about the forget set, off for all others.

The idea of O3 (arXiv 2407.10223), whose detector says whether, and how far, a LoRA is loaded for a prompt; with GRUN's
gates, or the router, in the detector's place.

Shapes: B prompts, T tokens, D hidden size, I and O a linear layer's inputs and outputs, R rank, K requests.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, Protocol, cast

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from grun.adapters.attaching import GatedEdited
from grun.adapters.grun import set_gate_threshold
from grun.adapters.switched import Prompts, SwitchedModel
from grun.lm.layers import Layer, layer_index
from grun.lm.patching import patched
from grun.model.forward import CausalLM
from grun.settings import LATER, LocalPath
from pyvene_custom.edits import Gated
from pyvene_custom.gate_functions import GateFunction, new_gate


@dataclass(frozen=True, kw_only=True)
class GatedLoraConfig(GatedEdited):
    """Train low-rank updates of the linear layers (arXiv 2106.09685) that a gate turns on, prompt by prompt."""

    name: Literal["gated_lora"] = "gated_lora"
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """AdamW's peak learning rate, of updates and gate alike."""
    r: Annotated[int, Ge(1)] = 4
    """Rank of the updates."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """The updates are scaled by alpha / r."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Dropout on the updates' input while training."""
    gate_function: GateFunction = "router"
    """The gate: in closed form, before anything is trained; or a linear map, or an MLP of three or five layers, then a
    sigmoid, trained with the updates: LoRA's few and small steps leave a linear one half open."""
    gate_layer: Layer = 1.0
    """Whose output at the last prompt token the gate reads, in a pass of the untouched model: its index from 0, or its
    relative depth as a decimal."""
    gate_threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    """Inference only: where the gate is below it, the updates are off; above it they count as far as it is open."""
    max_false_openings: Annotated[float, Ge(0), Lt(1)] | None = field(default=None, metadata=LATER)
    """Choose the threshold: the least at which no larger a share of kept prompts opens a gate, by a fifth of the
    retain set, which nothing else is trained on then. None: gate_threshold it is."""
    keep_prompts: LocalPath | None = field(default=None, metadata=LATER)
    """Router: a file of further questions to stay shut for, one a line, or rows of JSON with `question`."""
    keep_prompts_digest: str | None = field(default=None, metadata=LATER)
    """What it holds; the command finds it out."""
    gate_weight: Annotated[float, Ge(0)] = 10.0
    """Weight of the gate loss."""
    gate_warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which forget and retain loss grow from 0 to full weight; the gate loss is never scaled."""

    def attach(self, model: CausalLM, seed: int) -> "UpdatedModel":
        """Freeze the model and put a fresh gate and updates on it; they start at zero, so nothing changes yet.

        Raises UserError where the model has no such gate_layer.
        """
        config = model.config.get_text_config()
        gate_layer = layer_index(self.gate_layer, config.num_hidden_layers, "adapter.gate_layer")
        model.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            updates = LowRankUpdates(
                _linear_shapes(model),
                rank=self.r,
                scale=self.alpha / self.r,
                dropout=self.dropout,
                gate_function=self.gate_function,
                hidden_size=config.hidden_size,
            )
        adapted = UpdatedModel(model, {0: updates}, "answer", gate_layer)
        set_gate_threshold(adapted, self.gate_threshold)
        return adapted


class Updates(Protocol):
    """Low-rank updates of linear layers, of one request or of K together; a `torch.nn.Module`."""

    names: Sequence[str]
    """Of the linear layers, in the model."""

    def read(self, h_BD: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the updates each prompt gets, and the gate logits: [B, K] each."""

    def update(self, name: str, x_BTI: Tensor, weight_BK: Tensor) -> Tensor:
        """What they add to a linear layer's output: [B, T, O]."""


class LowRankUpdates(Gated):
    """y' = y + g · (α / R) · U V x at each linear layer; U starts at 0."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        scale: float,
        dropout: float,
        gate_function: GateFunction,
        hidden_size: int,
    ) -> None:
        """shapes: name → (outputs, inputs) of the linear layers. scale: α / R."""
        super().__init__()
        self.names = tuple(shapes)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.down_RI, self.up_OR = nn.ParameterDict(), nn.ParameterDict()
        for name, (num_outputs, num_inputs) in shapes.items():
            down_RI = torch.empty(rank, num_inputs)
            nn.init.kaiming_uniform_(down_RI, a=math.sqrt(5))  # as PEFT, and torch's own linear layers
            self.down_RI[_key(name)], self.up_OR[_key(name)] = down_RI, torch.zeros(num_outputs, rank)
        self.gate = new_gate(gate_function, hidden_size)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """V [R, I] and U [O, R] of a linear layer."""
        return self.down_RI[_key(name)], self.up_OR[_key(name)]

    def update(self, name: str, x_BTI: Tensor, weight_BK: Tensor) -> Tensor:
        """See `Updates`."""
        down_RI, up_OR = self.factors(name)
        low_BTR = nn.functional.linear(self.dropout(x_BTI.to(down_RI.dtype)), down_RI)
        return nn.functional.linear(low_BTR * (self.scale * weight_BK[:, None]), up_OR)


class UpdatedModel(SwitchedModel):
    """A frozen model and low-rank updates, on from a prompt's first token as far as its gate is open."""

    @property
    def _updates(self) -> Updates:
        return cast(Updates, self.edits["0"])

    @contextlib.contextmanager
    def changed(
        self, prompts: Prompts, weight_BK: Tensor, padding: Sequence[int]
    ) -> Iterator[Callable[[Tensor], None]]:
        """See `SwitchedModel`."""
        weights = [weight_BK]

        def keep(row_B: Tensor) -> None:
            weights[0] = weights[0][row_B]

        def run_and_update(name: str, run: Callable[[Tensor], Tensor], x_BTI: Tensor) -> Tensor:
            y_BTO = run(x_BTI)
            return (y_BTO + self._updates.update(name, x_BTI, weights[0])).to(y_BTO.dtype)

        # While training, an update of 0 is there all the same: it has a gradient.
        names = self._updates.names if weight_BK.any() or torch.is_grad_enabled() else ()
        linear = [(name, self.model.get_submodule(name)) for name in names]
        with patched((module, partial(run_and_update, name, module.forward)) for name, module in linear):
            yield keep


def _key(name: str) -> str:
    """A linear layer's name as torch allows it for a parameter: without dots."""
    return name.replace(".", "/")


def _linear_shapes(model: CausalLM) -> dict[str, tuple[int, int]]:
    """Name → (outputs, inputs) of every linear layer but the LM head."""
    head, shapes = model.get_output_embeddings(), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):  # GPT-2's
            shapes[name] = (module.weight.shape[1], module.weight.shape[0])
    return shapes
