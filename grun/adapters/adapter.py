"""What every adapter says of itself and can do; the rest of the code asks this, and never which adapter it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from grun.model.forward import Adapted, CausalLM
from pyvene_custom.editing import Edits


class Adapter(Protocol):
    """A frozen dataclass of settings. What mypy tells adapters apart by is annotated as Literals in each of them."""

    name: str
    """What it is called in configurations and results."""
    trains: ClassVar[bool] = True
    """Whether anything is trained at all."""
    has_loss: ClassVar[bool] = True
    """A forget and a retain loss train it; otherwise `Adapted.fit` settles it, and that is all."""
    trains_in_place: ClassVar[bool]
    """The model's own weights are what is trained: it is loaded in float32, and cannot be shared. There is
    `train_embeddings`."""
    is_small: ClassVar[bool] = True
    """What is trained is small enough to be kept of every run."""
    is_gated: ClassVar[bool]
    """Gates decide by the prompt; there are `gate_threshold`, `max_false_openings`, `keep_prompts`,
    `keep_prompts_digest`, `gate_function`, `gate_weight` and `gate_warmup_steps`."""
    is_stackable: ClassVar[bool]
    """Each deletion request trains a module of its own on the untouched model, in any order, and all are put on
    together; otherwise a request goes on from the weights of the one before."""
    paper_retain_weights: ClassVar[Mapping[str, float]] = {}
    """Forget loss → `training.retain_weight` where none is given, of those losses for which its own paper has another
    than theirs."""

    @property
    def edits(self) -> Edits | None:
        """Which positions' hidden states are edited, a setting where there is a choice; None: it is weights that
        train."""
        return None

    def attach(self, model: CausalLM, seed: int) -> Adapted:
        """The model with fresh trainable parts, whose initial values come from `seed` alone."""

    def save(self, adapted: Any, folder: Path) -> None:
        """Write what was trained. adapted: what `attach` or `load` returned."""

    def load(self, model: CausalLM, folder: Path) -> Adapted:
        """The model with what `save` wrote, bit for bit, in evaluation mode."""


class Ungated(Adapter, Protocol):
    """What most adapters are: without gates, and beside the model's own weights."""

    trains_in_place: ClassVar[Literal[False]] = False
    is_gated: ClassVar[Literal[False]] = False
    is_stackable: ClassVar[Literal[False]] = False
