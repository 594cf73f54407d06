"""Tensors that hold nothing: floats have shapes alone, while what is counted, lengths and masks, stays known."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import _disable_current_modes

from grun.model.forward import as_on_a_gpu

_PROPAGATES = "_propagate_tensor_meta_non_cached"
_PROPAGATED = getattr(ShardingPropagator, _PROPAGATES)
aten = torch.ops.aten
KNOWN_NUMBERS = 2**20
"""Largest tensor of token ids, positions or masks whose values are kept."""
COUNTED = {
    *(aten.arange.default, aten.arange.start, aten.arange.start_step),
    *(aten.zeros.default, aten.ones.default, aten.full.default),
}
"""What makes tensors from nothing, whose values are known where they are whole numbers."""


class Fakes(fake_tensor.FakeTensorMode):
    """torch's own mode, in which code may also read a number off a tensor: one that is not known is 1.0, token 0, true.

    So greedy answers never end, which makes them as long as they may be; and every gate is open.
    """

    def dispatch(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """See FakeTensorMode."""
        if func is aten._local_scalar_dense.default and args[0].constant is None:
            return _unknown(args[0].dtype)
        if func in COUNTED:
            with no_dispatch():  # first without values: a large one of floats is never made
                shape = func(*args, **{**(kwargs or {}), "device": "meta"})
                whole = not shape.dtype.is_floating_point and shape.numel() <= KNOWN_NUMBERS
                known = func(*args, **(kwargs or {})) if whole else None
            if known is not None:
                return self.fake_tensor_converter.from_real_tensor(self, known, make_constant=True)
        return super().dispatch(func, types, args, kwargs)


def _unknown(dtype: torch.dtype) -> bool | float:
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0


def _tolist(tensor: Any) -> Any:
    """`Tensor.tolist` at once: a fake tensor's own reads number by number."""
    known = tensor.constant
    with no_dispatch():
        return (torch.full(tensor.shape, _unknown(tensor.dtype)) if known is None else known).tolist()


def _deepcopy(tensor: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`: torch would copy the storage, which is not there."""
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return memo.setdefault(id(tensor), copied)


def _apply(module: nn.Module, change: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, by putting changed tensors in place of the old ones: torch would swap what the two objects
    hold, and cannot where something knows of them, as of every fake tensor."""
    for child in module.children() if recurse else ():
        child._apply(change)
    with torch.no_grad():
        for name, weight in _there(module._parameters):
            if (changed := change(weight)) is not weight:
                module._parameters[name] = nn.Parameter(changed, requires_grad=weight.requires_grad)
        for name, buffer in _there(module._buffers):
            module._buffers[name] = change(buffer)
    return module


def _there(tensors: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None]


def _shape_alone(propagator: Any, operation: Any) -> Any:
    """How DTensor finds a result's whole shape: on fake tensors of its own in any case, which no worker ever holds and
    which are not to be counted as if it did."""
    with _disable_current_modes():
        return _PROPAGATED(propagator, operation)


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """`functional.dropout` as a GPU has it: what is kept for the way back is which elements were dropped, a byte each.
    A CPU keeps a float each."""
    return torch.native_dropout(input, p, training)[0] if training else input


@contextlib.contextmanager
def rehearsing(*, on_gpu: bool = False) -> Iterator[None]:
    """Inside, every tensor that is made is fake. on_gpu: and computed on as on a GPU."""
    replaced: list[tuple[Any, str, Any]] = [
        *([(nn.functional, "dropout", _dropout)] if on_gpu else []),
        (fake_tensor, "CONSTANT_NUMEL_LIMIT", KNOWN_NUMBERS),
        (fake_tensor.FakeTensor, "tolist", _tolist),
        (fake_tensor.FakeTensor, "__deepcopy__", _deepcopy),
        (nn.Module, "_apply", _apply),
        (ShardingPropagator, _PROPAGATES, _shape_alone),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, ours in replaced:
        setattr(owner, name, ours)
    try:
        with as_on_a_gpu() if on_gpu else contextlib.nullcontext(), Fakes(allow_non_fake_inputs=True):
            yield
    finally:
        for (owner, name, _), theirs in zip(replaced, before, strict=True):
            setattr(owner, name, theirs)
