"""What every adapter says of itself and can do; the rest of the code asks this, and never which adapter it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from grun.model.forward import Adapted, CausalLM
from pyvene_custom.editing import Edits


class Adapter(Protocol):
    """A frozen dataclass of settings. Class variables are annotated as Literals, so that mypy tells adapters apart."""

    name: str
    trains: ClassVar[bool]
    """Whether anything is trained at all."""
    trains_in_place: ClassVar[bool]
    """The model's own weights are what is trained: it is loaded in float32, and cannot be shared. There is
    `train_embeddings`."""
    is_small: ClassVar[bool]
    """What is trained is small enough to be kept of every run."""
    is_gated: ClassVar[bool]
    """Gates decide by the prompt; there are `gate_threshold`, `gate_weight` and `gate_warmup_steps`."""
    is_stackable: ClassVar[bool]
    """Each deletion request trains a module of its own on the untouched model, in any order, and all are put on
    together; otherwise a request goes on from the weights of the one before."""
    edits: ClassVar[Edits | None]
    """Which positions' hidden states are edited, a setting where there is a choice; None: it is weights that train."""

    def attach(self, model: CausalLM, seed: int) -> Adapted:
        """The model with fresh trainable parts, whose initial values come from `seed` alone."""

    def save(self, adapted: Any, folder: Path) -> None:
        """Write what was trained. adapted: what `attach` or `load` returned."""

    def load(self, model: CausalLM, folder: Path) -> Adapted:
        """The model with what `save` wrote, bit for bit, in evaluation mode."""
