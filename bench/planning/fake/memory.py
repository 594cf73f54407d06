"""How much memory something takes at its peak, by what it is for, and how many products it multiplies."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import flop_registry

PARTS: Mapping[_MemRefType, str] = {
    _MemRefType.PARAM: "weights",
    _MemRefType.BUFFER: "weights",
    _MemRefType.GRAD: "gradients",
    _MemRefType.OPT: "optimiser",
    _MemRefType.ACT: "activations",
    _MemRefType.TEMP: "activations",
    _MemRefType.OTH: "activations",
}


@dataclass(kw_only=True)
class Spent:
    """What a part of a run takes of one worker."""

    peak: dict[str, int] = field(default_factory=dict)
    """Bytes at the peak: weights, gradients, optimiser (what it works with, in its step), activations."""
    flop: int = 0
    """Twice the multiplications of matrix products; attention's own, a few per cent, are left out."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.peak.values())


class _Tracker(MemTracker):
    """torch's tracker without its books on every module, which cost most of its time and allow one pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None: ...
    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...
    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None: ...
    def _post_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None and result is not NotImplemented:
            self.flop += count(*args, **(kwargs or {}), out_val=result)
        return result

    def note_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are known as such from now on."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)


@contextmanager
def spending(modules: Sequence[nn.Module]) -> Iterator[Spent]:
    """Inside, all that is made and multiplied is counted, beside what the modules hold; it is known at the end."""
    tracker, spent = _Tracker(), Spent()
    tracker.track_external(*modules)
    trained = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    hooks = [
        weight.register_post_accumulate_grad_hook(lambda each: tracker.note_gradients([each])) for weight in trained
    ]

    def before_a_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        tracker.note_gradients([weight for group in optimizer.param_groups for weight in group["params"]])

    hooks.append(register_optimizer_step_pre_hook(before_a_step))
    try:
        with tracker:
            yield spent
    finally:
        for hook in hooks:
            hook.remove()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    for kind, part in PARTS.items():
        spent.peak[part] = spent.peak.get(part, 0) + snapshot[kind]
    spent.flop = tracker.flop
