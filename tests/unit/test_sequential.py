"""Modules of several requests stacked in one edit: sums by hand, one product for all gates, bits left as they were."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from grun.errors import UserError
from grun.sequential import Combination, CombinedEdit
from pyvene_custom.edits import LoReFT
from pyvene_custom.gate_functions import GateFunction

D, R = 8, 2


def _edits(count: int, gate_function: GateFunction = "linear", rank: int = R) -> dict[str, LoReFT]:
    torch.manual_seed(count)
    made = {}
    for number in range(count):
        edit = LoReFT(hidden_size=D, rank=rank, gate_function=gate_function).eval()
        torch.nn.init.normal_(edit.gate[-1].bias, std=2.0)
        made[f"{number:03d}"] = edit
    return made


def _gates(edits: dict[str, LoReFT], h_BD: torch.Tensor) -> torch.Tensor:
    return torch.cat([edit.read(h_BD)[0] for edit in edits.values()], dim=1)


def _apply(combined: CombinedEdit, h_BD: torch.Tensor) -> torch.Tensor:
    return combined.edited(h_BD[:, None], combined.read(h_BD)[0])[:, 0]


@pytest.mark.parametrize("gate_function", ["linear", "mlp_3", "mlp_5"])
@pytest.mark.parametrize("gate_threshold", [0.0, 0.5])
def test_stacked_is_one_after_another(gate_function: GateFunction, gate_threshold: float) -> None:
    """sum: h + Σ g·Δ over the open gates; scaled: the same times 0.6 n + 0.6; top_1: the most open one alone."""
    edits, h_BD = _edits(5, gate_function), torch.randn(16, D)
    with torch.no_grad():
        gates = _gates(edits, h_BD)
        deltas = torch.stack([edit.difference(h_BD) for edit in edits.values()], dim=1)
        opened = gates * (gates >= gate_threshold)
        scale = 0.6 * opened.sum(dim=1, keepdim=True) + 0.6
        first = opened * (opened == opened.max(dim=1, keepdim=True).values)
        for combination, weights in (("sum", opened), ("scaled", opened * scale), ("top_1", first)):
            combined = CombinedEdit(edits, combination, gate_threshold)  # type: ignore[arg-type]
            edited, logits = _apply(combined, h_BD), combined.read(h_BD)[1]
            torch.testing.assert_close(edited, h_BD + (weights[..., None] * deltas).sum(dim=1), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(torch.sigmoid(logits), gates, rtol=1e-5, atol=1e-6)
            assert torch.equal(combined.weight(gates) > 0, weights > 0)


def test_scaled_by_hand() -> None:
    """Two gates at logit 0 are both 1/2: n = 1, so each edit counts 1/2 · (0.6 + 0.6) = 0.6; under sum, 0.5."""
    edits = _edits(2)
    for edit in edits.values():
        torch.nn.init.zeros_(edit.gate[-1].weight)
        torch.nn.init.zeros_(edit.gate[-1].bias)
    h_BD = torch.randn(3, D)
    with torch.no_grad():
        both = sum(edit.difference(h_BD) for edit in edits.values())
        for combination, weight in (("sum", 0.5), ("scaled", 0.6)):
            edited = _apply(CombinedEdit(edits, combination, 0.0), h_BD)  # type: ignore[arg-type]
            torch.testing.assert_close(edited, h_BD + weight * both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combination", get_args(Combination))
def test_shut_gates_leave_every_bit(combination: Combination) -> None:
    """Prompts whose gates are all shut come out as they went in, also in a batch with others, in bfloat16 too."""
    edits = _edits(4)
    h_BD = torch.randn(32, D)
    with torch.no_grad():
        gates = _gates(edits, h_BD)
        threshold = float(gates.max(dim=1).values.median())
        shut = gates.max(dim=1).values < threshold
        for dtype in (torch.float32, torch.bfloat16):
            h = h_BD.to(dtype)
            combined = CombinedEdit(edits, combination, threshold)
            edited, logits = _apply(combined, h), combined.read(h)[1]
            still = torch.sigmoid(logits).max(dim=1).values < threshold
            assert edited.dtype == dtype
            assert torch.equal(edited[still], h[still])
        assert 8 < shut.sum() < 24
        assert not torch.equal(edited[~still], h[~still])


def test_taken_back_is_as_if_it_had_never_been() -> None:
    edits, h_BD = _edits(5), torch.randn(16, D)
    kept = {name: edit for name, edit in edits.items() if name != "002"}
    never = {f"{number:03d}": edits[f"{number:03d}"] for number in (0, 1, 3, 4)}
    with torch.no_grad():
        all_on = _apply(CombinedEdit(edits, "sum", 0.0), h_BD)
        taken_back, without = (_apply(CombinedEdit(each, "sum", 0.0), h_BD) for each in (kept, never))
    assert torch.equal(taken_back, without)
    assert not torch.equal(all_on, without)


def test_a_replaced_module_counts_instead() -> None:
    edits, h_BD = _edits(2), torch.randn(4, D)
    other = _edits(3)["002"]
    with torch.no_grad():
        replaced = _apply(CombinedEdit({**edits, "001": other}, "sum", 0.0), h_BD)
        expected = h_BD + sum(edit.read(h_BD)[0] * edit.difference(h_BD) for edit in (edits["000"], other))
    torch.testing.assert_close(replaced, expected, rtol=1e-5, atol=1e-5)


def test_modules_of_different_shape_are_refused() -> None:
    with pytest.raises(UserError, match="requests: their modules differ in rank or gate function"):
        CombinedEdit({"a": _edits(1)["000"], "b": _edits(1, rank=3)["000"]}, "sum", 0.0)


def test_all_gates_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests: one matrix product for linear gates, two for open edits, none where all are shut."""
    h_BD = torch.randn(4, D)
    products: list[str] = []
    run = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: products.append("@") or run(a, b))
    for count in (1, 7):
        for threshold, wanted in ((0.0, 3), (1.0, 1)):
            combined = CombinedEdit(_edits(count), "sum", threshold)
            products.clear()
            _apply(combined, h_BD)
            assert len(products) == wanted
