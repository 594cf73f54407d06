"""A pass of edits by hand: who is edited, by which gate, and what is held while an answer is decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from pyvene_custom.editing import Editing, Edits


class _Adds:
    """The gate is the hidden state's own number; an edit adds ten times the weight."""

    def read(self, h_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        return h_BD, h_BD

    def edited(self, h_BTD: Tensor, weight_BK: Tensor) -> Tensor:
        return h_BTD + 10 * weight_BK[:, None]


def _pass(where: Edits, prompt_end_B: Tensor | None, hidden: list[list[int]]) -> tuple[Editing, list[list[int]]]:
    editing = Editing({3: _Adds()}, where, prompt_end_B)
    edited_BL1 = editing(3, torch.tensor(hidden)[..., None])
    return editing, edited_BL1[..., 0].tolist()


def test_a_prompts_end_alone_is_edited() -> None:
    """Columns 1 and 0 hold the last prompt tokens, with gates 2 and 4: 2 + 20 and 4 + 40."""
    editing, edited = _pass("prompt_end", torch.tensor([1, 0]), [[1, 2, 3], [4, 5, 6]])
    assert edited == [[1, 22, 3], [44, 5, 6]]
    decoded = torch.tensor([[[7]], [[8]]])
    assert torch.equal(editing(3, decoded), decoded)
    assert editing.layers_while_decoding() == []


def test_a_latched_edit_goes_on_by_the_gate_at_the_prompts_end() -> None:
    """From columns 1 and 0 on, by the gates 2 and 4 read there: 3 + 20, 5 + 40, 6 + 40; decoded tokens 7 + 20 and
    8 + 40; and once the first prompt's answer has ended, the second's next token 9 + 40."""
    editing, edited = _pass("answer", torch.tensor([1, 0]), [[1, 2, 3], [4, 5, 6]])
    assert edited == [[1, 22, 23], [44, 45, 46]]
    assert editing(3, torch.tensor([[[7]], [[8]]]))[..., 0].tolist() == [[27], [48]]
    editing.keep(torch.tensor([1]))
    assert editing(3, torch.tensor([[[9]]]))[..., 0].tolist() == [[49]]
    gate_logit_BK = editing.gate_logit_BK()
    assert gate_logit_BK is not None
    assert gate_logit_BK.tolist() == [[2], [4]]


def test_the_first_column_is_the_prompts_end_where_nothing_else_is_said() -> None:
    assert _pass("prompt_end", None, [[1, 2], [3, 4]])[1] == [[11, 2], [33, 4]]
    assert _pass("answer", None, [[1, 2], [3, 4]])[1] == [[11, 12], [33, 34]]


def test_where_all_gates_are_shut_decoding_has_nothing_to_do() -> None:
    """The gates 0 and 0 add nothing; of 0 and 5, one does."""
    assert _pass("answer", None, [[0, 2], [0, 4]])[0].layers_while_decoding() == []
    assert _pass("answer", None, [[0, 2], [5, 4]])[0].layers_while_decoding() == [3]
