"""Decoder layers that for a while do something else: pass on what they get, or have what they give changed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from grun.lm.patching import decoder_layers, output_tensor, patched, with_output_tensor

LayerChange = Callable[[int, Tensor], Tensor]
"""Called with a layer and its output; returns what that becomes."""


def changed_layers(model: Any, change: LayerChange, layers: Iterable[int]) -> AbstractContextManager[None]:
    """Inside, the output of these layers is changed."""
    return patched(changed(decoder_layers(model), change, layers))


def changed(
    layers: nn.ModuleList, change: LayerChange, indices: Iterable[int]
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """What these layers do instead: as before, and their output is changed."""
    for index in indices:

        def run_and_change(*args: Any, _run: Any = layers[index].forward, _layer: int = index, **kwargs: Any) -> Any:
            output = _run(*args, **kwargs)
            return with_output_tensor(output, change(_layer, output_tensor(output)))

        yield layers[index], run_and_change


def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a layer does that is not to be run."""
    return hidden_states
