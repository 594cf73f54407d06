"""Answers in a row, each behind a prefix that is known: padding in attention alone, in blocks of like length.

Exact, to float rounding; see `grun.model.packed`. What is read is hidden states, from each prompt's last token on.

Shapes: T tokens of the row or of a block, B examples, P columns of a block's prefixes, A of what follows, S = P + A.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from grun.data import Example, padding_groups
from grun.lm.kv_cache import aligned
from grun.model.packed import Attend, Packed

BLOCK_SHARE = 0.4
"""What attention in a further block costs of what a further pass would."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Examples of like length, which follow each other in the row."""

    kv_BP2MHd: Tensor
    """Keys and values of their prefixes, the last tokens in one column; M layers."""
    prefix_B: Tensor
    """Tokens of each prefix."""
    token_BA: Tensor
    """Which of the block's tokens is at each place; padding, which comes last and nothing looks at, is any."""
    place_T: Tensor
    """Where each of its tokens is, counted through the examples, one after another."""

    @cached_property
    def _back_AS(self) -> Tensor:
        """How many tokens each column lies before each place."""
        num_before, size = self.kv_BP2MHd.shape[1], self.token_BA.shape[1]
        column_S = torch.arange(num_before + size, device=self.token_BA.device)
        return column_S[num_before:, None] - column_S

    @cached_property
    def _is_seen_B1AS(self) -> Tensor:
        first_B = self.kv_BP2MHd.shape[1] - self.prefix_B
        column_S = torch.arange(self._back_AS.shape[1], device=self.token_BA.device)
        return ((self._back_AS >= 0) & (column_S >= first_B[:, None, None]))[:, None]

    def attended(
        self, attend: Attend, at: int, query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, window: int | None
    ) -> Tensor:
        """Attention of its tokens: [T, H, d]. at: which of the M layers."""
        mask_B1AS = self._is_seen_B1AS
        if window is not None and window < mask_B1AS.shape[3]:
            mask_B1AS = mask_B1AS & (self._back_AS < window)
        keys_BSHd, values_BSHd = (
            torch.cat([before_BPHd, self._sequences(own_THd)], dim=1)
            for before_BPHd, own_THd in zip(self.kv_BP2MHd[:, :, :, at].unbind(2), (key_THd, value_THd), strict=True)
        )
        seen = (each.transpose(1, 2) for each in (self._sequences(query_THd), keys_BSHd, values_BSHd))
        output_BAHd, _ = attend(*seen, mask_B1AS)
        return output_BAHd.flatten(0, 1).index_select(0, self.place_T)

    def _sequences(self, each_THd: Tensor) -> Tensor:
        return each_THd.index_select(0, self.token_BA.flatten()).unflatten(0, self.token_BA.shape)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """All of the row; see `grun.model.packed.Attending`."""

    blocks: Sequence[Block]
    first_layer: int
    """The first of those whose keys and values are known."""

    def attended(
        self, attend: Attend, layer: Any, query_1HTd: Tensor, key_1HTd: Tensor, value_1HTd: Tensor, window: int | None
    ) -> Tensor:
        """See `Attending`."""
        sizes = [len(block.place_T) for block in self.blocks]
        parts = (each.transpose(1, 2)[0].split(sizes) for each in (query_1HTd, key_1HTd, value_1HTd))
        outputs = [
            block.attended(attend, layer - self.first_layer, *own, window)
            for block, *own in zip(self.blocks, *parts, strict=True)
        ]
        return torch.cat(outputs)[None]


def pack_behind(
    examples: Sequence[Example],
    kv: Sequence[Tensor],
    hidden: Sequence[Tensor],
    device: torch.device,
    *,
    first_layer: int,
    pass_tokens: float,
) -> Packed:
    """Examples → one row, block after block.

    kv: [P, 2, M, H, d] of each example, of its prefix alone, at the M layers from `first_layer` on. hidden: [answer
    tokens, D] of each, its prompt's last token first. pass_tokens: what a further pass costs.
    """
    sizes = [len(each) for each in hidden]
    groups = padding_groups(sizes, BLOCK_SHARE * pass_tokens)
    order = list(chain(*groups))
    starts = dict(zip(order, accumulate((sizes[row] for row in order), initial=0), strict=False))
    at_A, size_B = torch.arange(max(sizes)), torch.tensor(sizes)
    token_BA = torch.tensor([starts[row] for row in range(len(sizes))])[:, None] + at_A
    first_positions = [len(example.prompt_ids) - 1 for example in examples]
    return Packed(
        read={"inputs_embeds": torch.cat([hidden[row] for row in order])[None].to(device)},
        position_ids_1T=_runs((first_positions[row], sizes[row]) for row in order)[None].to(device),
        predicts_answer_BL=(0, _runs((starts[row], size) for row, size in enumerate(sizes)).to(device)),
        layout=Blocks(blocks=[_block(group, kv, sizes, device) for group in groups], first_layer=first_layer),
        token_BA=token_BA.clamp(max=sum(sizes) - 1).to(device),
        is_token_BA=(at_A < size_B[:, None]).to(device),
    )


def _block(rows: Sequence[int], kv: Sequence[Tensor], sizes: Sequence[int], device: torch.device) -> Block:
    own = [sizes[row] for row in rows]
    start_B, at_A = torch.tensor([0, *accumulate(own[:-1])]), torch.arange(max(own))
    return Block(
        kv_BP2MHd=aligned([kv[row] for row in rows]).to(device),
        prefix_B=torch.tensor([len(kv[row]) for row in rows], device=device),
        token_BA=(start_B[:, None] + at_A).clamp(max=sum(own) - 1).to(device),
        place_T=_runs((max(own) * at, size) for at, size in enumerate(own)).to(device),
    )


def _runs(runs: Iterable[tuple[int, int]]) -> Tensor:
    """Numbers that follow each other. runs: (first, how many) of each part."""
    return torch.cat([torch.arange(first, first + count) for first, count in runs])
