"""transformers' caches of keys and values, as far as we reach into them: the one file that an upgrade must check."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.errors import UserError


def check_attention(model: Any) -> None:
    """Raises UserError where some layer keeps a state in place of every token's keys and values (Mamba's, say): one
    that a prompt, or an answer's beginning, has left behind cannot be gone back to."""
    from transformers import DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    if any(isinstance(each, LinearAttentionCacheLayerMixin) for each in DynamicCache(config=model.config).layers):
        problem = "has layers that keep no keys and values; use one with attention in every layer"
        raise UserError("model.name", f"{type(model).__name__} {problem}")


def new_cache() -> Any:
    """An empty cache that keeps every token at every layer; sliding windows are left to the model's masks."""
    from transformers import DynamicCache

    return DynamicCache()


def aligned(kv: Sequence[Tensor]) -> Tensor:
    """Keys and values [P, 2, M, H, d] of several prompts, their last tokens in one column: [B, P, 2, M, H, d]."""
    return pad_sequence(list(kv), batch_first=True, padding_side="left")


def filled_cache(kv_BP2MHd: Tensor, *, first_kept: int) -> Any:
    """A cache that holds these keys and values.

    first_kept: layer of the first of them. Layers below it are never run, but the model measures its mask on one of
    them: they get placeholders of the right length.
    """
    cache = new_cache()
    batch_size, length = kv_BP2MHd.shape[:2]
    if length == 0:
        return cache
    placeholder = kv_BP2MHd.new_zeros(1).expand(batch_size, 1, length, 1)
    for layer in range(first_kept):
        cache.update(placeholder, placeholder, layer)
    for layer, (keys_BHPd, values_BHPd) in enumerate(kv_BP2MHd.permute(3, 2, 0, 4, 1, 5), start=first_kept):
        cache.update(keys_BHPd, values_BHPd, layer)
    return cache


def fill_below(cache: Any, kv_BP2MHd: Tensor) -> None:
    """Put keys and values in where `filled_cache` left placeholders or nothing: at the first M layers."""
    for layer, (keys_BHPd, values_BHPd) in enumerate(kv_BP2MHd.permute(3, 2, 0, 4, 1, 5)):
        if layer < len(cache.layers) and cache.layers[layer].is_initialized:
            cache.layers[layer].keys, cache.layers[layer].values = keys_BHPd, values_BHPd
        else:
            cache.update(keys_BHPd, values_BHPd, layer)


def keys_and_values(cache: Any, num_layers: int) -> Tensor | None:
    """What a cache holds of its tokens: [B, P, 2, M, H, d]; None where some layer holds none."""
    filled = [layer for layer in cache.layers[:num_layers] if getattr(layer, "keys", None) is not None]
    if len(filled) < num_layers:
        return None
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in filled]).permute(2, 4, 1, 0, 3, 5)


def take_last(cache: Any, num_layers: int) -> list[tuple[Tensor, Tensor]] | None:
    """Take the last column away from every layer: keys and values of it, [B, H, 1, d], layer after layer.

    None, and nothing is taken, where not all of so many layers hold keys and values.
    """
    if sum(getattr(layer, "keys", None) is not None for layer in cache.layers) < num_layers:
        return None
    taken = [(layer.keys[:, :, -1:], layer.values[:, :, -1:]) for layer in cache.layers]
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
    return taken


def add_columns(cache: Any, columns: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Keys and values that the first layers go on with."""
    for layer, (keys_BHPd, values_BHPd) in enumerate(columns):
        cache.update(keys_BHPd, values_BHPd, layer)


def keep_rows(cache: Any, row_B: Tensor) -> None:
    """Drop all sequences but these."""
    cache.batch_select_indices(row_B)


def rows_of(cache: Any, row_B: Tensor) -> Any:
    """A cache of its own that holds these sequences, some perhaps more than once."""
    chosen = new_cache()
    for layer, kept in enumerate(cache.layers):
        chosen.update(kept.keys[row_B.to(kept.keys.device)], kept.values[row_B.to(kept.values.device)], layer)
    return chosen


def sequence_of(cache: Any, row: int, column_L: Tensor) -> Any:
    """A cache of its own that holds these columns of one sequence."""
    chosen = new_cache()
    for layer, kept in enumerate(cache.layers):
        at = column_L.to(kept.keys.device)
        chosen.update(kept.keys[row : row + 1, :, at], kept.values[row : row + 1, :, at], layer)
    return chosen


def joined(caches: Sequence[Any]) -> Any:
    """Caches of one sequence each as one, their last tokens in one column."""
    whole = new_cache()
    for layer, kept in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys, values = (
            pad_sequence([own[0].transpose(0, 1) for own in part], batch_first=True, padding_side="left").transpose(
                1, 2
            )
            for part in ([each.keys for each in kept], [each.values for each in kept])
        )
        whole.update(keys, values, layer)
    return whole


def move_right(cache: Any, columns_B: Tensor, mask_BS: Tensor) -> Tensor:
    """Move each sequence so many columns to the right, those behind its end round to the left; returns the mask, moved
    likewise. Columns that are such leftovers of all are dropped. Keys were turned to their positions when they were
    made, so where they lie changes nothing."""
    size, drop = mask_BS.shape[1], int(columns_B.min())
    from_BS = (torch.arange(drop, size, device=mask_BS.device) - columns_B[:, None]) % size
    for layer in cache.layers:
        at = from_BS[:, None, :, None].to(layer.keys.device)
        layer.keys = layer.keys.gather(2, at.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
        layer.values = layer.values.gather(2, at.expand(-1, layer.values.shape[1], -1, layer.values.shape[3]))
    return mask_BS.gather(1, from_BS)
