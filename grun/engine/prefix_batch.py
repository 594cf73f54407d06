"""Some examples, assembled for the layers above the first edited one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.data import Example
from grun.lm.kv_cache import aligned, filled_cache


@dataclass(frozen=True, kw_only=True)
class PrefixBatch:
    """Some examples, ready for the layers above `first_layer`."""

    cache: Any
    """`transformers`' own, of the prompts' earlier tokens, left-padded."""
    hidden_BTD: Tensor
    """Output of the first edited layer; the edited position stands first. Right-padded."""
    attention_mask_BS: Tensor
    """1 on tokens, 0 on padding; S = P + T."""
    position_ids_BT: Tensor
    predicts_answer_BL: Tensor
    """bool, [B, T]: what is not padding; each predicts one answer token."""

    def inputs(self) -> dict[str, Any]:
        """As the arguments of a `transformers` forward."""
        return {
            "inputs_embeds": self.hidden_BTD,
            "attention_mask": self.attention_mask_BS,
            "position_ids": self.position_ids_BT,
            "past_key_values": self.cache,
            "use_cache": True,
        }


def assemble(
    examples: Sequence[Example],
    kv: Sequence[Tensor],
    hidden: Sequence[Tensor],
    device: torch.device | str,
    *,
    first_kept: int,
) -> PrefixBatch:
    """One batch: prefixes padded on the left, what follows on the right, so that the two meet at the edit.

    kv: [P, 2, M, H, d] of each example, of its prefix alone. hidden: [answer tokens, D] of each. first_kept: see
    `filled_cache`.
    """
    kv_BP2MHd = aligned(kv)
    longest = kv_BP2MHd.shape[1]
    hidden_BTD = pad_sequence(list(hidden), batch_first=True)
    column_S = torch.arange(longest + hidden_BTD.shape[1])
    prefix_B, suffix_B = (torch.tensor([len(each) for each in tensors]) for tensors in (kv, hidden))
    is_token_BS = (column_S >= longest - prefix_B[:, None]) & (column_S < longest + suffix_B[:, None])
    first_position_B = torch.tensor([len(example.prompt_ids) - 1 for example in examples])
    return PrefixBatch(
        cache=filled_cache(kv_BP2MHd.to(device), first_kept=first_kept),
        hidden_BTD=hidden_BTD.to(device),
        attention_mask_BS=is_token_BS.long().to(device),
        position_ids_BT=(first_position_B[:, None] + torch.arange(hidden_BTD.shape[1])).to(device),
        predicts_answer_BL=is_token_BS[:, longest:].to(device),
    )
