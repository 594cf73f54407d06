"""Training cut off goes on where it was: what is trained and AdamW's moments, in one safetensors file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

STATE = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How far a training came."""

    losses: Sequence[Sequence[float]]
    """Of each step so far: all of it, which was minimised, and the forget, retain and gate loss without their weights;
    all workers together."""
    seconds: float
    retain_weight: float
    """Of the retain loss in the next step."""

    @property
    def steps(self) -> int:
        """How many there were."""
        return len(self.losses)


class File(Protocol):
    """Where a checkpoint is kept."""

    def exists(self) -> bool:
        """Whether there is one."""

    def read(self) -> bytes:
        """All of it. Raises OSError."""

    def write(self, content: bytes) -> None:
        """Put it there, whole or not at all."""


class Checkpoints:
    """One training's checkpoint; a newer one replaces it."""

    def __init__(self, file: File, *, every_seconds: float, writes: bool, log: Callable[[str], None]) -> None:
        """writes: whether this process writes; all read. log: gets one line where something was found."""
        self.file, self.every_seconds, self.writes, self.log = file, every_seconds, writes, log
        self._last = time.perf_counter()

    def load(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Trained | None:
        """Put everything back as it was; a missing or damaged checkpoint leaves all as it is and gives None."""
        if not self.file.exists():
            return None
        try:
            tensors = load(self.file.read())
            losses, (seconds, retain_weight) = tensors["losses"].tolist(), tensors["trained"].tolist()
            values = [tensors[f"parameter.{place}"] for place in range(len(parameters))]
            states = [{name: tensors[f"{name}.{place}"] for name in STATE} for place in range(len(parameters))]
            if [value.shape for value in values] != [parameter.shape for parameter in parameters]:
                raise ValueError("of another module")
        except (SafetensorError, KeyError, ValueError) as error:
            self.log(f"{self.file} is damaged ({type(error).__name__}); training starts over")
            return None
        with torch.no_grad():
            for parameter, value, state in zip(parameters, values, states, strict=True):
                parameter.copy_(value)
                optimizer.state[parameter] = {
                    name: tensor if name == "step" else tensor.to(parameter.device) for name, tensor in state.items()
                }
        self.log(f"training goes on after step {len(losses)}")
        return Trained(losses=losses, seconds=seconds, retain_weight=retain_weight)

    def offer(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, trained: Trained) -> None:
        """Write a checkpoint where the last one is old enough."""
        if not self.writes or time.perf_counter() - self._last < self.every_seconds:
            return
        self._last = time.perf_counter()
        numbers = {"losses": trained.losses, "trained": [trained.seconds, trained.retain_weight]}
        tensors = {name: torch.tensor(some, dtype=torch.float64) for name, some in numbers.items()}
        for place, parameter in enumerate(parameters):
            tensors[f"parameter.{place}"] = parameter.detach()
            tensors |= {f"{name}.{place}": optimizer.state[parameter][name] for name in STATE}
        self.file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
