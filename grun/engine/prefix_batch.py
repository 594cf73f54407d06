"""Some examples, assembled for the layers above the first edited one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grun.data import Example, answer_labels
from grun.model.kv_cache import aligned


@dataclass(frozen=True, kw_only=True)
class PrefixBatch:
    """Some examples, ready for the layers above `first_layer`."""

    kv_BP2MHd: Tensor
    """Keys and values of the prompt's earlier tokens, left-padded; [B, P, 2, M, H, d]."""
    hidden_BTD: Tensor
    """Output of the first edited layer; the edited position stands first. Right-padded."""
    attention_mask_BS: Tensor
    """1 on tokens, 0 on padding; S = P + T."""
    position_ids_BT: Tensor
    is_token_BT: Tensor
    """bool: T positions that are not padding; each predicts one answer token."""
    label_N: Tensor
    row_N: Tensor

    def __len__(self) -> int:
        return self.hidden_BTD.shape[0]


def assemble(
    examples: Sequence[Example], kv: Sequence[Tensor], hidden: Sequence[Tensor], device: torch.device | str
) -> PrefixBatch:
    """One batch: prefixes padded on the left, what follows on the right, so that the two meet at the edit.

    kv: [P, 2, M, H, d] of each example, of its prefix alone. hidden: [answer tokens, D] of each.
    """
    kv_BP2MHd = aligned(kv)
    label_N, row_N = answer_labels(examples)
    longest = kv_BP2MHd.shape[1]
    lengths = [len(example.answer_ids) for example in examples]
    hidden_BTD = hidden[0].new_zeros((len(examples), max(lengths), hidden[0].shape[-1]))
    mask_BS = torch.zeros((len(examples), longest + max(lengths)), dtype=torch.long)
    first_position_B = torch.tensor([len(example.prompt_ids) - 1 for example in examples])
    for row, (keys, states) in enumerate(zip(kv, hidden, strict=True)):
        hidden_BTD[row, : lengths[row]] = states
        mask_BS[row, longest - len(keys) : longest + lengths[row]] = 1
    return PrefixBatch(
        kv_BP2MHd=kv_BP2MHd.to(device),
        hidden_BTD=hidden_BTD.to(device),
        attention_mask_BS=mask_BS.to(device),
        position_ids_BT=(first_position_B[:, None] + torch.arange(max(lengths))).to(device),
        is_token_BT=mask_BS[:, longest:].bool().to(device),
        label_N=label_N.to(device),
        row_N=row_N.to(device),
    )


def suffix_ids(examples: Sequence[Example]) -> Tensor:
    """What the model reads from the edited position on: [B, T], right-padded."""
    rows = [(example.prompt_ids[-1], *example.answer_ids[:-1]) for example in examples]
    ids_BT = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.tensor(row)
    return ids_BT
