"""Answers that scoring has begun: as far as the model would have given them itself, they need not be read again.

Shapes: B answers, S columns of their cache, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.lm.greedy import decode
from grun.lm.kv_cache import joined, sequence_of
from grun.lm.prompted import Prompted, ReadOn
from grun.lm.reading import eos_ids


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A prompt, and how the model's greedy answer to it begins."""

    model: Any
    cache: Any
    """`transformers`' own, of the tokens of both."""
    num_read: int
    """How many those are."""
    right: tuple[int, ...]
    """The answer's tokens so far."""
    logits_V: Tensor
    """What follows."""


def begin(read: Prompted | ReadOn, row: int, num_prompt: int, answer: Sequence[int], logits_TV: Tensor) -> Begun | None:
    """Of an answer, T tokens, that a row has read to its last token but one; None where the model gives all of it.

    num_prompt: tokens of the prompt. logits_TV: what predicts the answer's tokens.
    """
    is_right_T = logits_TV.argmax(dim=-1) == torch.tensor(answer, device=logits_TV.device)
    if is_right_T.all():
        return None
    num_right = int(is_right_T.cumprod(dim=0).sum())
    column_L = read.attention_mask_BL[row].nonzero()[: num_prompt + num_right, 0]
    return Begun(
        model=read.model,
        cache=sequence_of(read.cache, row, column_L),
        num_read=len(column_L),
        right=tuple(answer[:num_right]),
        logits_V=logits_TV[num_right],
    )


@torch.no_grad()
def answers_from(begun: Sequence[Begun], max_new_tokens: int, drafts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy answers as token ids, what is begun included and EOS left out; see `decode`.

    drafts: how each may well go on.
    """
    model = begun[0].model
    sizes = [each.num_read for each in begun]
    mask_BS = pad_sequence(
        [torch.ones(size, dtype=torch.long) for size in sizes], batch_first=True, padding_side="left"
    )
    return decode(
        model,
        joined([each.cache for each in begun]),
        torch.stack([each.logits_V for each in begun]),
        mask_BS.to(model.device),
        torch.tensor(sizes, device=model.device),
        max_new_tokens=max_new_tokens,
        eos_ids=set(eos_ids(model)),
        begun=[each.right for each in begun],
        drafts=drafts,
    )
