"""Modules of several requests stacked in one edit: sums by hand, one product for all gates, bits left as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.sequential.deployment import export
from grun.adapters.grun import GrunConfig
from grun.data import Example
from grun.errors import UserError
from grun.model.forward import PlainModel
from grun.sequential import Combination, CombinedEdit, combine, load_deployment, save_deployment
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
    """sum: h + Σ g·Δ over the open gates; scaled_by_number: 0.6 · 5 + 0.6 = 3.6 times that; top_1: the most open
    one alone."""
    edits, h_BD = _edits(5, gate_function), torch.randn(16, D)
    with torch.no_grad():
        gates = _gates(edits, h_BD)
        deltas = torch.stack([edit.difference(h_BD) for edit in edits.values()], dim=1)
        opened = gates * (gates >= gate_threshold)
        first = opened * (opened == opened.max(dim=1, keepdim=True).values)
        for combination, weights in (("sum", opened), ("scaled_by_number", opened * 3.6), ("top_1", first)):
            combined = CombinedEdit(edits, combination, gate_threshold)  # type: ignore[arg-type]
            edited, logits = _apply(combined, h_BD), combined.read(h_BD)[1]
            torch.testing.assert_close(edited, h_BD + (weights[..., None] * deltas).sum(dim=1), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(torch.sigmoid(logits), gates, rtol=1e-5, atol=1e-6)
            assert torch.equal(combined.weight(gates) > 0, weights > 0)


@pytest.mark.parametrize("bias", [0.0, -2.0])
def test_scaled_by_number_by_hand(bias: float) -> None:
    """Two modules: 0.6 · 2 + 0.6 = 1.8 times what `sum` adds, however open the gates are: 0.9 each at σ(0) = 1/2."""
    edits = _edits(2)
    for edit in edits.values():
        torch.nn.init.zeros_(edit.gate[-1].weight)
        torch.nn.init.constant_(edit.gate[-1].bias, bias)
    h_BD, gate = torch.randn(3, D), torch.sigmoid(torch.tensor(bias))
    with torch.no_grad():
        both = sum(edit.difference(h_BD) for edit in edits.values())
        for combination, weight in (("sum", gate), ("scaled_by_number", 1.8 * gate)):
            edited = _apply(CombinedEdit(edits, combination, 0.0), h_BD)  # type: ignore[arg-type]
            torch.testing.assert_close(edited, h_BD + weight * both, rtol=1e-5, atol=1e-5)


def test_a_deployment_goes_nowhere_where_something_is(tmp_path: Path) -> None:
    """A folder that exists: what lay there would be mixed with it. An empty one may be there."""
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="holds no requests"):
        export(tmp_path, "s", tmp_path / "out", ())
    (tmp_path / "out" / "config.json").write_text("{}")
    for place in ("out", "out/config.json"):
        with pytest.raises(UserError, match=r"--output: .* is there already, and not empty; name another folder"):
            export(tmp_path, "s", tmp_path / place, ())


def test_a_combination_of_before_is_not_taken_for_another() -> None:
    """`scaled` weighed by the sum of the gates: a deployment that names it must not be loaded as something else."""
    with pytest.raises(UserError, match="combination: is 'scaled'; use one of sum, scaled_by_number, top_1"):
        CombinedEdit(_edits(2), "scaled", 0.0)  # type: ignore[arg-type]


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


class _Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing here is text."""


@pytest.mark.parametrize("settings", [{}, {"edits": "answer", "gate_layer": 1}], ids=["paper", "latched, late"])
def test_a_deployment_is_what_was_deployed(settings: dict[str, Any], tmp_path: Path) -> None:
    """Two modules on a model, saved and loaded: the same logits, which are not the model's own."""
    torch.manual_seed(0)
    shape = {"vocab_size": 31, "hidden_size": D, "intermediate_size": 8, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).eval()
    config = GrunConfig(layers=(0, 2), rank=R, **settings)
    modules = {name: config.attach(model, seed) for seed, name in enumerate("ab")}
    folders = {name: tmp_path / name for name in modules}
    for name, module in modules.items():
        folders[name].mkdir()
        config.save(module, folders[name])
    save_deployment(tmp_path / "all", model, _Tokenizer(), config, folders, "sum", 0.0)
    loaded = load_deployment(tmp_path / "all", model)
    stacked = combine(modules["a"], modules, "sum", 0.0)
    examples = [Example(prompt_ids=(3, 4, 5), answer_ids=(6, 7, 8)), Example(prompt_ids=(9,), answer_ids=(1,))]
    with torch.no_grad():
        ours, theirs, base = (each.answer_output(examples) for each in (stacked, loaded, PlainModel(model)))
    assert torch.equal(theirs.logits_NV, ours.logits_NV)
    assert not torch.allclose(ours.logits_NV, base.logits_NV)
