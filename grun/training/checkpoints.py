"""Training cut off goes on where it was: what is trained and AdamW's moments, each worker's part, as safetensors."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grun.errors import Damaged
from grun.sharding import joined, own_part
from grun.workers import ALONE, Workers

EVERY_SECONDS = 60.0
"""A training that lasts longer leaves a checkpoint this often, to go on from if it is cut off."""
SPARED = 10.0
"""Checkpoints are further apart where writing one takes long: training goes on for so many times as long."""
STEP = "step"
"""What AdamW keeps of a parameter beside its moments: a number, on the CPU and never sharded."""
TRAINED = "trained.json"
"""File of a checkpoint that says how far the training came; where it is, all others are."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How far a training came."""

    losses: Sequence[Sequence[float]]
    """Of each step so far: all of it, which was minimised, and where it is made of several, the forget, retain and gate
    loss without their weights; all workers together."""
    seconds: float
    retain_weight: float = 0.0
    """Of the retain loss in the next step."""

    @property
    def steps(self) -> int:
        """How many there were."""
        return len(self.losses)


class Folder(Protocol):
    """Where checkpoints are kept, here or in an object store: `bench.results.storage.Location` says what each does."""

    def __truediv__(self, name: str) -> Self: ...
    def exists(self) -> bool: ...
    def read(self) -> bytes: ...
    def read_folder(self) -> AbstractContextManager[Path]: ...
    def written_folder(self, last: str) -> AbstractContextManager[Path]: ...
    def set_aside(self) -> Self: ...
    def remove(self) -> None: ...


class Checkpoints:
    """One training's last two checkpoints. Where weights are sharded, each worker writes its part into a folder of its
    own, and as many workers as there may be put the parts together again."""

    def __init__(self, folder: Folder, *, workers: Workers = ALONE, log: Callable[[str], None]) -> None:
        """workers: who trains; all read. log: gets one line where something was found, or could not be written."""
        self.folder, self.workers, self.log = folder, workers, log
        self._next = 0
        """Which of the two is written next."""
        self._due = time.perf_counter() + EVERY_SECONDS

    def load(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Trained | None:
        """Put everything back as it was in the last whole checkpoint; where there is none, leave all as it is.

        What is damaged is set aside.
        """
        damage = ""
        for which, num_parts in self.workers.shared(self._written):
            try:
                trained, states = self._read(which, num_parts, parameters)
                problem = None
            except Damaged as error:
                problem = error
            if self._all(problem is None, parameters):
                with torch.no_grad():
                    for parameter, state in zip(parameters, states, strict=True):
                        parameter.copy_(state.pop("value"))
                        optimizer.state[parameter] = state
                self._next = 1 - which
                self._say(f"{damage}training goes on after step {trained.steps}")
                return trained
            damage += f"{problem}; " if problem else ""
        if damage:
            self._say(f"{damage}training starts over")
        return None

    def offer(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, trained: Trained) -> None:
        """Write a checkpoint where the last one is old enough. Where that fails, the one before it is still there."""
        started, workers = time.perf_counter(), self.workers
        is_due = started >= self._due
        if not (workers.shared(lambda: is_due) if workers.sharded else is_due and workers.is_first):
            return
        is_written = True
        try:
            self._write(parameters, optimizer, trained)
        except (OSError, SafetensorError) as error:
            is_written = False
            reason = error.strerror if isinstance(error, OSError) else error
            self.log(f"no checkpoint was written ({reason}); training goes on, and the one before it is kept")
        if is_written if not workers.sharded else self._all(is_written, parameters):
            self._next = 1 - self._next
        now = time.perf_counter()
        self._due = now + max(EVERY_SECONDS, SPARED * (now - started))

    def _say(self, line: str) -> None:
        if self.workers.is_first:
            self.log(line)

    def _all(self, is_well: bool, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether it is with all workers."""
        unwell = torch.tensor([0.0 if is_well else 1.0], device=parameters[0].device)
        return not self.workers.sum(unwell).item()

    def _part(self, which: int, part: int) -> Folder:
        return self.folder / f"{which}-{part}"

    def _written(self) -> list[tuple[int, int]]:
        """(which of the two, in how many parts) of those that all parts are there of, the newest first."""
        found = []
        for which in range(2):
            steps, num_parts = self._header(which, 0)
            if num_parts and all(self._header(which, part)[0] == steps for part in range(1, num_parts)):
                found.append((steps, which, num_parts))
        return [(which, num_parts) for _, which, num_parts in sorted(found, reverse=True)]

    def _header(self, which: int, part: int) -> tuple[float, int]:
        """(steps, parts); (-1, 0) where there is none. One that cannot be read comes first, and is found damaged."""
        file = self._part(which, part) / TRAINED
        if not file.exists():
            return -1, 0
        try:
            header = json.loads(file.read())
            return len(header["losses"]), header["parts"]
        except (ValueError, KeyError, TypeError):
            return math.inf, 1

    def _read(
        self, which: int, num_parts: int, parameters: Sequence[nn.Parameter]
    ) -> tuple[Trained, list[dict[str, Tensor]]]:
        """What was trained, and of each parameter its value and what AdamW keeps of it. Raises Damaged."""
        folder = self._part(which, 0)
        try:
            with ExitStack() as stack:
                parts = []
                for part in range(num_parts):
                    folder = self._part(which, part)
                    parts.append(stack.enter_context(folder.read_folder()))
                header = json.loads((parts[0] / TRAINED).read_text())
                del header["parts"]
                return Trained(**header), [
                    _state([load_file(part / f"{place}.safetensors") for part in parts], parameter)
                    for place, parameter in enumerate(parameters)
                ]
        except (Damaged, SafetensorError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
            aside = f", and kept as {folder.set_aside()}" if self.workers.is_first else ""
            raise Damaged(str(folder), f"is damaged{aside}") from error

    def _write(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, trained: Trained) -> None:
        workers = self.workers
        folder = self._part(self._next, workers.rank if workers.sharded else 0)
        folder.remove()  # there is room for two, and the other one is whole
        with folder.written_folder(last=TRAINED) as scratch:
            for place, parameter in enumerate(parameters):
                state = {"value": parameter.detach(), **optimizer.state[parameter]}
                tensors = {name: own_part(tensor).cpu().contiguous() for name, tensor in state.items()}
                save_file(tensors, scratch / f"{place}.safetensors")
            header = {**vars(trained), "parts": workers.size if workers.sharded else 1}
            (scratch / TRAINED).write_text(json.dumps(header))


def _state(parts: Sequence[dict[str, Tensor]], parameter: nn.Parameter) -> dict[str, Tensor]:
    """A parameter's value and AdamW's tensors of it, from all their parts, where and as they belong."""
    state = {name: joined([part[name] for part in parts], parameter) for name in parts[0] if name != STEP}
    if state["value"].shape != parameter.shape:
        raise ValueError("of another module")
    return state | {STEP: parts[0][STEP].to(parameter.device, copy=True)}
