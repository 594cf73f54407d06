"""Gated LoReFT: the edit is applied as far as a gate holds the prompt to be about the forget set."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, cast

from annotated_types import Ge, Gt, Le, Lt, MinLen

from grun.adapters.attaching import GatedEdited, attach_edits
from grun.engine.edited import EditedModel
from grun.lm.layers import Layer, Layers
from grun.model.forward import CausalLM
from grun.settings import LATER, LocalPath
from pyvene_custom.editing import Edits
from pyvene_custom.edits import Gated
from pyvene_custom.gate_functions import GateFunction


@dataclass(frozen=True, kw_only=True)
class GrunConfig(GatedEdited):
    """Edit the last prompt token's hidden state behind a soft gate (arXiv 2502.17823)."""

    paper_retain_weights: ClassVar[Mapping[str, float]] = {"grad_ascent": 2.0}
    name: Literal["grun"] = "grun"
    learning_rate: Annotated[float, Gt(0)] = 4e-3
    """AdamW's peak learning rate."""
    layers: Annotated[Layers, MinLen(1)] = (21 / 32, 26 / 32, 1.0)
    """Edited layers: indices from 0, or relative depths in (0, 1] written as decimals."""
    rank: Annotated[int, Ge(1)] = 4
    """Rank of the edit."""
    edits: Edits = field(default="prompt_end", metadata=LATER)
    """Edited positions: the last prompt token, as in the paper; `answer`: that and every token of the answer,
    by what the gate said at the last prompt token."""
    gate_function: GateFunction = "linear"
    """The gate: a linear map, or an MLP of three or five layers, then a sigmoid; or in closed form, `router` by the
    prompt's last token, `mean_router` by the mean over the prompt."""
    gate_layer: Layer | None = field(default=None, metadata=LATER)
    """Whose output all gates read, in a pass of the untouched model: its index from 0, or its relative depth as a
    decimal. None: each reads the layer that it edits, as in the paper, and the router the last one."""
    gate_threshold: Annotated[float, Ge(0), Le(1)] = 0.0
    """Inference only: a gate below it counts as shut. 0 is the paper's soft gate."""
    max_false_openings: Annotated[float, Ge(0), Lt(1)] | None = field(default=None, metadata=LATER)
    """Choose the threshold: the least at which no larger a share of kept prompts opens a gate, by a fifth of the
    retain set, which nothing else is trained on then. None: gate_threshold it is."""
    keep_prompts: LocalPath | None = field(default=None, metadata=LATER)
    """Router: a file of further questions to stay shut for, one a line, or rows of JSON with `question`."""
    keep_prompts_digest: str | None = field(default=None, metadata=LATER)
    """What it holds; the command finds it out."""
    gate_weight: Annotated[float, Ge(0)] = 10.0
    """Weight of the gate loss. The paper uses 100 on WMDP."""
    gate_warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which forget and retain loss grow from 0 to full weight; the gate loss is never scaled."""

    def attach(self, model: CausalLM, seed: int) -> EditedModel:
        """Freeze the model and put a fresh gated edit on each layer."""
        adapted = attach_edits(
            model,
            self.layers,
            self.edits,
            rank=self.rank,
            gate_function=self.gate_function,
            gate_layer=self.gate_layer,
            seed=seed,
        )
        set_gate_threshold(adapted, self.gate_threshold)
        return adapted


def set_gate_threshold(adapted: EditedModel, gate_threshold: float) -> None:
    """Move the inference threshold of every gate; nothing is retrained."""
    for edit in _gated(adapted):
        edit.gate_threshold = gate_threshold


@contextlib.contextmanager
def gates_forced(adapted: EditedModel, is_open: Sequence[bool]) -> Iterator[None]:
    """Inside, each layer's gate is open, or shut, for every prompt; in the order of the layers."""
    edits = _gated(adapted)
    try:
        for edit, forced_open in zip(edits, is_open, strict=True):
            edit.forced_open = forced_open
        yield
    finally:
        for edit in edits:
            edit.forced_open = None


def _gated(adapted: EditedModel) -> list[Gated]:
    return cast(list[Gated], list(adapted.edits.values()))
