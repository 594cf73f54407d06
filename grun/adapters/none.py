"""No adapter: a model as it is, to measure the target and the retain model by the same path as the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from grun.adapters.adapter import Ungated
from grun.model.forward import CausalLM, PlainModel


@dataclass(frozen=True, kw_only=True)
class NoneConfig(Ungated):
    """Nothing is trained."""

    learning_rate: ClassVar[float] = 0.0
    trains: ClassVar[bool] = False
    name: Literal["none"] = "none"

    def attach(self, model: CausalLM, seed: int) -> PlainModel:
        """The model itself, frozen."""
        return PlainModel(model.requires_grad_(False))

    def save(self, adapted: PlainModel, folder: Path) -> None:
        """There is nothing to write."""

    def load(self, model: CausalLM, folder: Path) -> PlainModel:
        """The model itself."""
        return self.attach(model, seed=0)
