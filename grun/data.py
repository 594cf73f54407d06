"""Examples and batches: token ids of prompts and answers, in the order in which they are trained on."""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, takewhile, zip_longest
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt with one answer, as token ids."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens the model reads: the last answer token is only ever predicted."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1

    def from_its_second_token(self) -> Self:
        """The same tokens, all but the first one of them to be said."""
        first, *rest = self.prompt_ids + self.answer_ids
        return replace(self, prompt_ids=(first,), answer_ids=tuple(rest))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded sequences and where their answers are."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    predicts_answer_BL: Tensor
    """bool: positions whose next token is an answer token."""
    edited_position_B: Tensor
    """Index of the last prompt token."""

    def __len__(self) -> int:
        return self.input_ids_BL.shape[0]


def collate(examples: Sequence[Example], *, device: torch.device | str = "cpu") -> Batch:
    """Examples → one right-padded batch. Padding is masked, so it may be any valid token: 0."""
    read = [torch.tensor((example.prompt_ids + example.answer_ids)[:-1]) for example in examples]
    input_ids_BL = pad_sequence(read, batch_first=True)
    position_L = torch.arange(input_ids_BL.shape[1])
    edited_position_B = torch.tensor([len(example.prompt_ids) - 1 for example in examples])
    is_token_BL = position_L < torch.tensor([len(example) for example in examples])[:, None]
    return Batch(
        input_ids_BL=input_ids_BL.to(device),
        attention_mask_BL=is_token_BL.long().to(device),
        predicts_answer_BL=(is_token_BL & (position_L >= edited_position_B[:, None])).to(device),
        edited_position_B=edited_position_B.to(device),
    )


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, so padding is small and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padding_groups(lengths: Sequence[int], overhead: float) -> list[list[int]]:
    """Indices in groups of like length, longest first, cut where tokens and padding cost least together.

    lengths: tokens of each sequence; a group costs its size times its longest.
    overhead: what starting a group costs, in tokens of padding. Exact, by dynamic programming over the cuts.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    best = [(0.0, 0)]  # for the first n of them: (cost, where their last group starts)
    for end in range(1, len(order) + 1):
        best.append(
            min((best[start][0] + (end - start) * lengths[order[start]] + overhead, start) for start in range(end))
        )
    groups: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def num_shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def epoch_batches(num_items: int, batch_size: int, num_epochs: int, seed: int) -> Iterator[list[int]]:
    """Indices of every item once an epoch, reshuffled each epoch; the last batch of an epoch may be short."""
    shuffle = random.Random(seed)
    for _ in range(num_epochs):
        order = list(range(num_items))
        shuffle.shuffle(order)
        for start in range(0, num_items, batch_size):
            yield order[start : start + batch_size]


def batches_in_turn(
    groups: Sequence[Sequence[int]], batch_size: int, num_epochs: int, seed: int
) -> Iterator[list[int]]:
    """As `epoch_batches`, but each batch of one group alone, and the groups in turn until the epoch has had them all.

    groups: the indices of each.
    """
    streams = [epoch_batches(len(group), batch_size, num_epochs, seed) for group in groups]
    for _ in range(num_epochs):
        epoch = [
            [[group[place] for place in batch] for batch in islice(stream, math.ceil(len(group) / batch_size))]
            for group, stream in zip(groups, streams, strict=True)
        ]
        for turn in zip_longest(*epoch):
            yield from (batch for batch in turn if batch is not None)


def paired_batches(
    groups: Sequence[Sequence[int]],
    num_retain: int,
    *,
    batch_size: int,
    num_epochs: int,
    seed: int,
    fixed: bool = False,
) -> Iterator[tuple[list[int], list[int]]]:
    """Forget and retain indices for each step, as many of one as of the other.

    groups: the forget indices; those of one step are of one group, the groups in turn.
    An epoch is one pass over the forget set. Retain items come from an endless stream of reshuffled passes,
    so a forget item meets a new retain item every time. fixed: it meets its first one in all epochs.
    """
    retain_stream = chain.from_iterable(epoch_batches(num_retain, num_retain, sys.maxsize, seed + 1))
    partners = [next(retain_stream) for _ in range(sum(map(len, groups)))] if fixed else []
    for forget in batches_in_turn(groups, batch_size, num_epochs, seed):
        yield forget, [partners[item] if fixed else next(retain_stream) for item in forget]
