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
from grun.lm.begun import Begun, begin
from grun.lm.prompted import Prompted, ReadOn, read_prompts

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
    begin_answers: bool = False,
) -> "SideBySide":
    """What one pass over prompts with their answers says, to float rounding.

    Prompts are read once each, then the answers with what the model keeps of them.

    pass_tokens: how many tokens not to be read are worth a further pass: answers are then read in groups of like
    length, and what all prompts, or a prompt's answers, begin with is read once. keep: called with the rows of what was
    read before that the next pass goes on from. begin_answers: whether to keep what is read of each first answer.
    """
    read = read_prompts(model, unique_prompts(examples), pass_tokens=pass_tokens)
    scores = SideBySide(examples, read, begin_answers=begin_answers)
    waiting = [(read, _pieces(scores.rows, scores.answers, pass_tokens))]
    while waiting:
        read, pieces = waiting.pop()
        for group in padding_groups([len(piece.tokens) for piece in pieces], pass_tokens):
            own = [pieces[at] for at in group]
            row_B = torch.tensor([piece.row for piece in own], device=model.device)
            keep(row_B)
            further = read.read_on(row_B, [piece.tokens for piece in own])
            scores.take(further, own)
            rest = [left for row, piece in enumerate(own) for left in piece.rest(row, scores.answers)]
            if rest:
                waiting.append((further.prompted(), rest))
    return scores


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


class SideBySide:
    """What is known of some answers to prompts that are read."""

    def __init__(self, examples: Sequence[Example], read: Prompted, *, begin_answers: bool) -> None:
        self._begins = begin_answers
        row = {prompt: at for at, prompt in enumerate(unique_prompts(examples))}
        self.rows = [row[example.prompt_ids] for example in examples]
        """Of each answer's prompt."""
        self.answers = [example.answer_ids[:-1] for example in examples]
        """What of them is to be read."""
        self.begun: dict[tuple[int, ...], Begun] = {}
        """Prompt → how its first answer begins, where that is wanted and the model would not have said all of it."""
        *self._first, num_tokens = accumulate((len(example.answer_ids) for example in examples), initial=0)
        first_BV = read.first_logits()
        self.logits_NV = first_BV.new_empty(num_tokens, first_BV.shape[1])
        """That predict the answers' tokens."""
        self.head_input_ND = read.head_input_BD.new_empty(num_tokens, read.head_input_BD.shape[1])
        """What the LM head made them of."""
        self._examples = examples
        self._put(list(zip(self._first, self.rows, strict=True)), first_BV, read.head_input_BD)
        for at, answer in enumerate(self.answers):
            if not answer:
                self._begin(read, self.rows[at], at)

    def take(self, read: ReadOn, pieces: Sequence[_Piece]) -> None:
        """What these pieces' tokens predict."""
        starts = accumulate((len(piece.tokens) for piece in pieces), initial=0)
        places = [
            (self._first[at] + piece.begin + 1 + column, start + column)
            for start, piece in zip(starts, pieces, strict=False)
            for at in piece.answers
            for column in range(len(piece.tokens))
        ]
        assert read.logits_NV is not None, "its head ran"
        self._put(places, read.logits_NV, read.head_input_ND)
        for row, piece in enumerate(pieces):
            for at in piece.answers:
                if len(self.answers[at]) == piece.begin + len(piece.tokens):
                    self._begin(read, row, at)

    def _put(self, places: Sequence[tuple[int, int]], logits: Tensor, head_input: Tensor) -> None:
        """places: (where among all answers' tokens, where among those of a pass)."""
        to_N, from_N = torch.tensor(places, device=logits.device).T
        self.logits_NV.index_copy_(0, to_N, logits[from_N])
        self.head_input_ND.index_copy_(0, to_N, head_input[from_N])

    def _begin(self, read: Prompted | ReadOn, row: int, at: int) -> None:
        """Keep what a row has read of an answer, if it is its prompt's first."""
        if not self._begins or at != self.rows.index(self.rows[at]):
            return
        example, first = self._examples[at], self._first[at]
        logits_TV = self.logits_NV[first : first + len(example.answer_ids)]
        begun = begin(read, row, len(example.prompt_ids), example.answer_ids, logits_TV)
        if begun is not None:
            self.begun[example.prompt_ids] = begun


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
