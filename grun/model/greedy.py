"""Greedy decoding with a KV cache, where a finished answer soon stops costing anything.

Shapes: B sequences still being answered.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from grun.model.kv_cache import keep_rows

KEEP_SHARE = 0.75
"""The cache is cut down to the unfinished sequences once fewer than this share of its rows are."""


def decode(  # noqa: PLR0913 (a decoder's state, from wherever it comes)
    model: Any,
    cache: Any,
    logits_BV: Tensor,
    attention_mask_BS: Tensor,
    next_position_B: Tensor,
    *,
    max_new_tokens: int,
    eos_ids: Collection[int],
    keep: Callable[[Tensor], None] = lambda row_B: None,
) -> list[list[int]]:
    """Answers, EOS left out, of at most max_new_tokens tokens each.

    cache: a `transformers` cache filled with each prompt. logits_BV: what follows each prompt's last token.
    attention_mask_BS: 1 where the cache holds a token of the sequence. next_position_B: position id of the next one.
    keep: called with the rows that go on, whenever the others are dropped.
    """
    answers: list[list[int]] = [[] for _ in range(logits_BV.shape[0])]
    rows = list(range(len(answers)))  # the answer that each row of the cache belongs to
    open_rows = set(rows)
    token_B = logits_BV.argmax(dim=-1)
    for length in range(1, max_new_tokens + 1):
        for row, token in zip(rows, token_B.tolist(), strict=True):
            if row in open_rows:
                if token in eos_ids:
                    open_rows.discard(row)
                else:
                    answers[row].append(token)
        if not open_rows or length == max_new_tokens:
            break
        if len(open_rows) < KEEP_SHARE * len(rows):
            kept = [index for index, row in enumerate(rows) if row in open_rows]
            rows = [rows[index] for index in kept]
            row_B = torch.tensor(kept, device=token_B.device)
            keep_rows(cache, row_B)
            keep(row_B)
            token_B, next_position_B = token_B[row_B], next_position_B[row_B]
            attention_mask_BS = attention_mask_BS[row_B]
        attention_mask_BS = torch.cat([attention_mask_BS, torch.ones_like(attention_mask_BS[:, :1])], dim=1)
        outputs = model(
            input_ids=token_B[:, None],
            attention_mask=attention_mask_BS,
            position_ids=next_position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        token_B = outputs.logits[:, -1].argmax(dim=-1)
        next_position_B = next_position_B + 1
    return answers
