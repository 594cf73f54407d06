"""Prompts that a model has read in one pass, and greedy answers from there on."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grun.model.greedy import decode
from grun.model.kv_cache import new_cache
from grun.model.reading import eos_ids, head_at, last_position, layer_output, prompt_inputs


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """A model after its pass over a batch of prompts, whose last tokens stand in the last column."""

    model: Any
    cache: Any
    """`transformers`' own, of their keys and values."""
    logits_BV: Tensor
    """What follows each prompt's last token."""
    head_input_BD: Tensor
    """What the LM head made that of."""
    attention_mask_BL: Tensor
    next_position_B: Tensor
    hidden_BD: Sequence[Tensor]
    """Outputs at the prompts' last tokens of the layers that were asked for."""

    def answers(
        self,
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]] = (),
        keep: Callable[[Tensor], None] = lambda row_B: None,
    ) -> list[list[int]]:
        """Greedy answers as token ids, EOS left out; see `decode`. To be asked once: the cache goes on with them."""
        return decode(
            self.model,
            self.cache,
            self.logits_BV,
            self.attention_mask_BL,
            self.next_position_B,
            max_new_tokens=max_new_tokens,
            eos_ids=set(eos_ids(self.model)),
            drafts=drafts,
            keep=keep,
        )


@torch.no_grad()
def read_prompts(model: Any, prompts: Sequence[tuple[int, ...]], layers: Sequence[int] = ()) -> Prompted:
    """One pass over some prompts. layers: whose outputs at the prompts' last tokens to keep, by index."""
    inputs = prompt_inputs(prompts, model)
    mask_BL = inputs["attention_mask"]
    position_ids_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    cache = new_cache()
    with ExitStack() as stack:
        head_inputs = stack.enter_context(head_at(model, last_position(mask_BL)))
        seen = [stack.enter_context(layer_output(model, layer)) for layer in layers]
        outputs = model(**inputs, position_ids=position_ids_BL, past_key_values=cache, use_cache=True)
    return Prompted(
        model=model,
        cache=cache,
        logits_BV=outputs.logits[0],
        head_input_BD=head_inputs[0],
        attention_mask_BL=mask_BL,
        next_position_B=position_ids_BL[:, -1] + 1,
        hidden_BD=[hidden_BLD[:, -1] for (hidden_BLD,) in seen],
    )
