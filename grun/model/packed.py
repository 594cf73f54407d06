"""A batch as one row of tokens: no padding, and what all prompts begin with once; attention alone sees sequences.

Exact, to float rounding: all other parts of a decoder treat each token alone. As ModernBERT is trained without padding
(arXiv 2412.13663). For families whose attention gets what the model is called with (`_supports_attention_backend`).

Shapes: T tokens of the row, L columns of the sequences, A tokens of the longest answer, B sequences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grun.data import Example, collate, num_shared
from grun.model.changed import LayerChange
from pyvene_custom.editing import Editing

Attend = Callable[..., tuple[Tensor, Any]]
"""Called with queries, keys and values of some sequences, [B, H, L, d], and a mask or None; returns [B, L, H, d]."""

_NAME = "grun_packed"
"""Of the attention: torch's own, which lays out in sequences what comes in a row."""
_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that the layout knows."""


class Attending(Protocol):
    """What knows which of the row's tokens see each other."""

    def attended(
        self, attend: Attend, layer: Any, query_1HTd: Tensor, key_1HTd: Tensor, value_1HTd: Tensor, window: int | None
    ) -> Tensor:
        """A layer's attention: [1, T, H, d]. layer: its index, where the model tells. window: how many tokens a token
        sees at most, itself included."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the row's tokens are in the sequences."""

    token_BL: Tensor
    """Which token is at each place; padding, which comes last and nothing looks at, is any."""
    place_T: Tensor
    """Where each token is, counted through the sequences, one after another."""

    def attended(
        self, attend: Attend, layer: Any, query_1HTd: Tensor, key_1HTd: Tensor, value_1HTd: Tensor, window: int | None
    ) -> Tensor:
        """A layer's attention, in sequences, with a mask where not all is seen that went before: [1, T, H, d]."""
        size = self.token_BL.shape[1]
        mask_LL = None
        if window is not None and window < size:
            column_L = torch.arange(size, device=self.token_BL.device)
            back_LL = column_L[:, None] - column_L
            mask_LL = ((back_LL >= 0) & (back_LL < window))[None, None]
        output_BLHd, _ = attend(*(self._sequences(each) for each in (query_1HTd, key_1HTd, value_1HTd)), mask_LL)
        return output_BLHd.flatten(0, 1).index_select(0, self.place_T)[None]

    def _sequences(self, each_1HTd: Tensor) -> Tensor:
        spread_1HBLd = each_1HTd.index_select(2, self.token_BL.flatten()).unflatten(2, self.token_BL.shape)
        return spread_1HBLd[0].transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Some examples' tokens in a row, sequence after sequence."""

    read: Mapping[str, Tensor]
    """`input_ids` [1, T], or `inputs_embeds` [1, T, D]."""
    position_ids_1T: Tensor
    predicts_answer_BL: Any
    """Tokens whose next one is an answer token, as a batch has them: bool, [1, T], or what else picks them in order."""
    layout: Attending
    token_BA: Tensor
    """Which tokens predict each answer, from its prompt's last one on."""
    is_token_BA: Tensor
    """Which of those are not padding."""

    def inputs(self) -> dict[str, Any]:
        """As the arguments of a `transformers` forward."""
        return {
            **self.read,
            "position_ids": self.position_ids_1T,
            "attention_mask": torch.ones_like(self.position_ids_1T[..., None, None, :1], dtype=torch.bool),  # no other
            "layout": self.layout,
            "use_cache": False,
        }

    def shown_to(self, editing: Editing) -> LayerChange:
        """What edits do to a layer's output: where answers are predicted, or at the prompts' ends if that is all."""
        shown = self
        if editing.is_at_ends:
            shown = replace(self, token_BA=self.token_BA[:, :1], is_token_BA=self.is_token_BA[:, :1])
        return partial(shown.edited, editing)

    def edited(self, change: LayerChange, layer: int, hidden_1TD: Tensor) -> Tensor:
        """A layer's output, changed where answers are predicted. change: is shown that alone, [B, A, D]."""
        edited_BAD = change(layer, hidden_1TD[0, self.token_BA])
        return hidden_1TD.index_copy(1, self.token_BA[self.is_token_BA], edited_BAD[self.is_token_BA][None])


def pack(examples: Sequence[Example], *, device: torch.device | str = "cpu") -> Packed:
    """Examples → one row. What all begin with, their prompts' last tokens apart, is in the first one's place."""
    batch = collate(examples)
    prompts = [example.prompt_ids for example in examples]
    num_begun = min(num_shared(prompts), *(len(prompt) - 1 for prompt in prompts))
    is_own_BL = batch.attention_mask_BL.bool()
    is_own_BL[1:, :num_begun] = False
    token_BL = is_own_BL.flatten().cumsum(dim=0).sub(1).view_as(is_own_BL)
    token_BL[1:, :num_begun] = token_BL[0, :num_begun]
    place_T = is_own_BL.flatten().nonzero()[:, 0]
    size_B = torch.tensor([len(example.answer_ids) for example in examples])
    at_A = torch.arange(int(size_B.max()))
    column_BA = (batch.edited_position_B[:, None] + at_A).clamp(max=token_BL.shape[1] - 1)
    return Packed(
        read={"input_ids": batch.input_ids_BL[is_own_BL][None].to(device)},
        position_ids_1T=(place_T % is_own_BL.shape[1])[None].to(device),
        predicts_answer_BL=batch.predicts_answer_BL[is_own_BL][None].to(device),
        layout=Layout(token_BL=token_BL.to(device), place_T=place_T.to(device)),
        token_BA=token_BL.gather(1, column_BA).to(device),
        is_token_BA=(at_A < size_B[:, None]).to(device),
    )


def can_read_packed(model: Any) -> bool:
    """Whether a causal LM can be called with `Packed.inputs`; from then on it can be, and whatever else it is called
    with goes as before."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if not getattr(model, "_supports_attention_backend", False) or not _LAYERS.issuperset(kinds):
        return False
    if config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)
    return bool(config._attn_implementation == _NAME)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Attending | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """torch's own, of sequences or of a row. As `transformers` calls it."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attend = partial(sdpa_attention_forward, module, **kwargs)
    layer = getattr(module, "layer_idx", None)
    return layout.attended(attend, layer, query, key, value, sliding_window), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
