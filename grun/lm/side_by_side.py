"""Answers to a prompt that is read once: how likely each of them is, where nothing is to be trained.

Shapes: P prompts, B answers, N answer tokens in all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from grun.data import Example, num_shared, padding_groups
from grun.lm.prompted import read_prompts

SHORTEST_SHARED = 4
"""Tokens with which answers must begin alike for that to be read once."""


def unique_prompts(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Each once, in the order in which they come."""
    return list(dict.fromkeys(example.prompt_ids for example in examples))


def is_worth_it(examples: Sequence[Example]) -> bool:
    """Whether some have one prompt, and nothing is to be trained."""
    return not torch.is_grad_enabled() and len(unique_prompts(examples)) < len(examples)


@torch.no_grad()
def read_side_by_side(
    model: Any,
    examples: Sequence[Example],
    *,
    pass_tokens: float = math.inf,
    keep: Callable[[Tensor], None] = lambda row_B: None,
) -> tuple[Tensor, Tensor]:
    """Logits [N, V] that predict the answers' tokens, and what the LM head made them of, [N, D].

    As one pass over prompts with their answers says, to float rounding; prompts are read once each, then the answers
    with what the model keeps of them.

    pass_tokens: how many tokens not to be read are worth a further pass: answers are then read in groups of like
    length, and what all prompts, or a prompt's answers, begin with is read once. keep: called with the rows of what was
    read before that the next pass goes on from.
    """
    prompts = unique_prompts(examples)
    row = {prompt: at for at, prompt in enumerate(prompts)}
    rows, answers = [row[example.prompt_ids] for example in examples], [example.answer_ids[:-1] for example in examples]
    *first, num_tokens = accumulate((len(example.answer_ids) for example in examples), initial=0)
    read = read_prompts(model, prompts, pass_tokens=pass_tokens)
    logits_NV = read.logits_BV.new_empty(num_tokens, read.logits_BV.shape[1])
    head_input_ND = read.head_input_BD.new_empty(num_tokens, read.head_input_BD.shape[1])

    def put(place: Sequence[tuple[int, int]], logits: Tensor, head_input: Tensor) -> None:
        to_N, from_N = torch.tensor(place, device=model.device).T
        logits_NV.index_copy_(0, to_N, logits[from_N])
        head_input_ND.index_copy_(0, to_N, head_input[from_N])

    put(list(zip(first, rows, strict=True)), read.logits_BV, read.head_input_BD)
    waiting = [(read, _pieces(rows, answers, pass_tokens))]
    while waiting:
        read, pieces = waiting.pop()
        for group in padding_groups([len(piece.tokens) for piece in pieces], pass_tokens):
            own = [pieces[at] for at in group]
            row_B = torch.tensor([piece.row for piece in own], device=model.device)
            keep(row_B)
            further = read.read_on(row_B, [piece.tokens for piece in own])
            put(_places(own, first), further.logits_NV, further.head_input_ND)
            rest = [left for at, piece in enumerate(own) for left in piece.rest(at, answers)]
            if rest:
                waiting.append((further.prompted(), rest))
    return logits_NV, head_input_ND


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What is read at once of an answer, or of several that begin alike."""

    row: int
    """Of what was read before, which it goes on from."""
    tokens: tuple[int, ...]
    answers: Sequence[int]
    begin: int = 0
    """Tokens of the answers before it."""

    def rest(self, row: int, answers: Sequence[tuple[int, ...]]) -> list["_Piece"]:
        """What is then still to be read, each answer's own. row: where this piece was read."""
        end = self.begin + len(self.tokens)
        longer = [at for at in self.answers if len(answers[at]) > end]
        return [_Piece(row=row, tokens=answers[at][end:], answers=[at], begin=end) for at in longer]


def _places(pieces: Sequence[_Piece], first: Sequence[int]) -> list[tuple[int, int]]:
    """(where among all answers' tokens, where among those that were read) of what the pieces' tokens predict.

    first: where each answer begins.
    """
    starts = accumulate((len(piece.tokens) for piece in pieces), initial=0)
    return [
        (first[at] + piece.begin + 1 + column, start + column)
        for start, piece in zip(starts, pieces, strict=False)
        for at in piece.answers
        for column in range(len(piece.tokens))
    ]


def _pieces(rows: Sequence[int], answers: Sequence[tuple[int, ...]], pass_tokens: float) -> list[_Piece]:
    """What is read behind the prompts first: beginnings that answers share, and what goes alone.

    rows: of the answers' prompts.
    """
    longer = [at for at, answer in enumerate(answers) if answer]
    alone = [_Piece(row=rows[at], tokens=answers[at], answers=[at]) for at in longer]
    shared = []
    for row, members in groupby(sorted(longer, key=lambda at: (rows[at], answers[at])), key=rows.__getitem__):
        for own in _alike(list(members), answers):
            size = num_shared([answers[at] for at in own])
            shared.append(_Piece(row=row, tokens=answers[own[0]][:size], answers=own))
    saved = sum((len(piece.answers) - 1) * len(piece.tokens) for piece in shared)
    return shared if saved > pass_tokens else alone


def _alike(ordered: Sequence[int], answers: Sequence[tuple[int, ...]]) -> list[Sequence[int]]:
    """Answers, which come sorted, cut where most tokens are saved by reading once what each group begins with."""
    best: list[tuple[int, list[Sequence[int]]]] = [(0, [])]  # for the first n of them: (tokens saved, groups)
    for end in range(1, len(ordered) + 1):
        cuts = []
        for start in range(end):
            saved, groups = best[start]
            own = ordered[start:end]
            size = num_shared([answers[at] for at in own])
            if len(own) == 1 or size >= SHORTEST_SHARED:
                cuts.append((saved + (len(own) - 1) * size, [*groups, own]))
        best.append(max(cuts, key=lambda cut: cut[0]))
    return best[-1][1]
