"""Layers by index, or by relative depth, so that one configuration serves models of any size."""

from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, Strict

from grun.errors import UserError

LayerIndex = Annotated[int, Strict(), Ge(0)]
RelativeDepth = Annotated[float, Strict(), Gt(0), Le(1)]
Layer = LayerIndex | RelativeDepth
"""Strict: 1 is the second layer and 1.0 the last one, and neither is ever read as the other."""


def _in_order(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Each once, indices before depths, from below: one set of layers is one setting, however it was written."""
    return tuple(layer for _, layer in sorted({(isinstance(layer, float), layer) for layer in layers}))


Layers = Annotated[tuple[Layer, ...], AfterValidator(_in_order)]


def layer_indices(layers: Layers, num_layers: int) -> tuple[int, ...]:
    """Sorted distinct indices of `adapter.layers`.

    On a shallow model two depths may meet in one layer, which is then edited once.
    Raises UserError where an index is beyond the model.
    """
    return tuple(sorted({layer_index(layer, num_layers, "adapter.layers") for layer in layers}))


def layer_index(layer: Layer, num_layers: int, field: str) -> int:
    """A layer's index. Depth d in (0, 1] means layer round(d · num_layers) − 1: 1.0 is the last one.

    So 21/32, 26/32 and 1.0 are the paper's 20, 25, 31 of 32.
    field: what to name in the UserError that an index beyond the model raises.
    """
    if isinstance(layer, float):
        return max(round(layer * num_layers), 1) - 1
    if not 0 <= layer < num_layers:
        raise UserError(field, f"layer {layer} is beyond the model's {num_layers}; use 0 to {num_layers - 1}")
    return int(layer)
