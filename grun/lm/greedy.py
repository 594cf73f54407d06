"""Greedy decoding with a KV cache, where a finished answer soon stops costing anything, and a foreseen one hardly any.

Shapes: B sequences still being answered, S columns of their cache, T tokens of the longest draft.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.lm.kv_cache import keep_rows, move_right
from grun.lm.reading import head_at

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
    begun: Sequence[Sequence[int]] = (),
    drafts: Sequence[Sequence[int]] = (),
    keep: Callable[[Tensor], None] = lambda row_B: None,
) -> list[list[int]]:
    """Answers, EOS left out, of at most max_new_tokens tokens each.

    cache: a `transformers` cache of each prompt, and of what of its answer is begun. logits_BV: what follows.
    attention_mask_BS: 1 where the cache holds a token of the sequence. next_position_B: position id of the next one.
    drafts: how each answer may well go on, EOS included. One pass reads them all, and decoding goes on from the first
    token that is not the model's own choice: the answers are the same, to float rounding in a tie.
    keep: called with the rows that go on, whenever the others are dropped.
    """
    written = _Answers(begun or [()] * len(logits_BV), max_new_tokens, eos_ids)
    rows = list(range(len(logits_BV)))  # the answer that each row of the cache belongs to
    token_B = logits_BV.argmax(dim=-1)
    if any(drafts):
        state = attention_mask_BS, next_position_B
        right, token_B, attention_mask_BS, next_position_B = _read(model, cache, token_B, *state, drafts)
        written.take(rows, right)
    while True:
        written.take(rows, token_B[:, None].tolist())
        if not written.open:
            return written.answers
        if len(written.open) < KEEP_SHARE * len(rows):
            kept = [index for index, row in enumerate(rows) if row in written.open]
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


class _Answers:
    """What has been written so far."""

    def __init__(self, begun: Sequence[Sequence[int]], max_new_tokens: int, eos_ids: Collection[int]) -> None:
        self.answers: list[list[int]] = [[] for _ in begun]
        self.open = set(range(len(begun)))
        """Those that go on."""
        self._max_new_tokens, self._eos_ids = max_new_tokens, eos_ids
        self.take(range(len(begun)), begun)

    def take(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """The next tokens of some answers, as far as they go on."""
        for row, token in ((row, token) for row, own in zip(rows, tokens, strict=True) for token in own):
            if row in self.open and token not in self._eos_ids:
                self.answers[row].append(token)
            if token in self._eos_ids or len(self.answers[row]) == self._max_new_tokens:
                self.open.discard(row)


def _read(
    model: Any,
    cache: Any,
    token_B: Tensor,
    attention_mask_BS: Tensor,
    next_position_B: Tensor,
    drafts: Sequence[Sequence[int]],
) -> tuple[list[Sequence[int]], Tensor, Tensor, Tensor]:
    """Read drafts in one pass: the part of each that the model would have chosen, what it chooses next, mask, position.

    token_B: its choice after the prompts. The cache goes on to each draft's last right token, which stands in the last
    column; what is behind it there is moved away to the left, as padding.
    """
    device = token_B.device
    hopeful = [
        draft if draft and draft[0] == token else () for draft, token in zip(drafts, token_B.tolist(), strict=True)
    ]
    if not any(hopeful):
        return hopeful, token_B, attention_mask_BS, next_position_B
    draft_BT = pad_sequence([torch.tensor(draft, dtype=torch.long) for draft in hopeful], batch_first=True).to(device)
    column_T = torch.arange(draft_BT.shape[1], device=device)
    is_draft_BT = column_T < torch.tensor([len(draft) for draft in hopeful], device=device)[:, None]
    with head_at(model, is_draft_BT):
        outputs = model(
            input_ids=draft_BT,
            attention_mask=torch.cat([attention_mask_BS, is_draft_BT.to(attention_mask_BS.dtype)], dim=1),
            position_ids=next_position_B[:, None] + column_T,
            past_key_values=cache,
            use_cache=True,
        )
    chosen_BT = torch.full_like(draft_BT, -1)
    chosen_BT[is_draft_BT] = outputs.logits[0].argmax(dim=-1)
    chosen_BT = torch.cat([token_B[:, None], chosen_BT], dim=1)  # before the draft's first token, …, after its last
    right_B = ((chosen_BT[:, :-1] == draft_BT) & is_draft_BT).cumprod(dim=1).sum(dim=1)
    is_right_BT = (column_T < right_B[:, None]).to(attention_mask_BS.dtype)
    mask_BS = move_right(cache, len(column_T) - right_B, torch.cat([attention_mask_BS, is_right_BT], dim=1))
    begun = [draft[:num_right] for draft, num_right in zip(hopeful, right_B.tolist(), strict=True)]
    return begun, chosen_BT.gather(1, right_B[:, None])[:, 0], mask_BS, next_position_B + right_B
