"""The router gate: who opens what, the same in any order and without what was taken back, and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from grun.adapters.grun import GrunConfig
from grun.testing.small import FORGET, RETAIN, SmallModels
from pyvene_custom.edits import LoReFT, load_edits, save_edits
from pyvene_custom.mean_router import MeanRouterGate
from pyvene_custom.router import RIDGE, RouterGate, _ridge

D = 16


def _around(centre: int, count: int, seed: int) -> Tensor:
    """Prompts about one subject: a place of its own, and a little noise."""
    generator = torch.Generator().manual_seed(100 + centre)
    place = torch.randn(D, generator=generator)
    return place + 0.1 * torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


KEEP = torch.cat([_around(centre, 4, 0) for centre in range(50, 60)])


def _gate(subject: int) -> RouterGate:
    gate = RouterGate(D)
    own = _around(subject, 5, 1)
    gate.fit(torch.cat([own, KEEP]), torch.arange(len(own) + len(KEEP)) < len(own))
    return gate


def _values(gate: RouterGate, h_BD: Tensor) -> Tensor:
    return torch.sigmoid(gate.logit(h_BD))


def test_it_opens_for_its_own_subject_alone() -> None:
    """Unseen prompts about the subject open it, wholly; kept ones, seen or not, do not."""
    gate = _gate(0)
    own = _values(gate, _around(0, 8, 2))
    kept = _values(gate, torch.cat([KEEP, *(_around(centre, 3, 3) for centre in range(50, 60))]))
    assert own.min() > 0.5
    assert kept.max() < 1e-3
    assert gate.opened(own).unique().tolist() == [1.0]
    assert gate.opened(kept).unique().tolist() == [0.0]


def test_before_it_is_fitted_it_is_shut() -> None:
    assert RouterGate(D).opened(_values(RouterGate(D), KEEP)).unique().tolist() == [0.0]


def test_three_layers_of_one_request_are_fitted_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests at three layers whose gates were told the same: one system for their stack, and none for each,
    which nobody asks alone; a tensor that all layers ask about goes through the features once, another one again."""
    solved: list[int] = []
    read: list[int] = []
    cholesky, addmm = torch.linalg.cholesky, torch.addmm
    monkeypatch.setattr(torch.linalg, "cholesky", lambda kernel: solved.append(1) or cholesky(kernel))
    unfitted = RouterGate(D)  # its own system, of no prompts, is one more
    solved.clear()
    layers = [[_gate(subject) for subject in (70, 71)] for _ in range(3)]
    stacks = [RouterGate.stack(gates) for gates in layers]
    assert len(solved) == 1
    monkeypatch.setattr(torch, "addmm", lambda *given: read.append(1) or addmm(*given))
    asked, again = _around(70, 3, 2), _around(71, 3, 2)
    first = [stack.logit(asked) for stack in stacks]
    assert len(read) == 1
    second = [stack.logit(again) for stack in stacks]
    assert len(read) == 2
    assert unfitted.opened(torch.sigmoid(unfitted.logit(asked))).sum() == 0
    for at in (0, 1, 2):
        assert torch.equal(first[at], stacks[0].logit(asked.clone()))
        assert torch.equal(second[at], RouterGate.stack([_gate(70), _gate(71)]).logit(again))


def test_stacked_each_prompt_opens_its_own_gate_at_most() -> None:
    gates = RouterGate.stack([_gate(subject) for subject in range(4)])
    for subject in range(4):
        value_BK = torch.sigmoid(gates.logit(_around(subject, 8, 2)))
        assert gates.opened(value_BK).tolist() == [[float(k == subject) for k in range(4)]] * 8
    assert gates.opened(torch.sigmoid(gates.logit(KEEP))).sum() == 0


def test_order_and_what_was_taken_back_leave_no_trace() -> None:
    """Bit for bit: in another order the columns change places; without a request the rest is a fresh fit's."""
    made = {subject: _gate(subject) for subject in range(4)}
    h_BD = torch.cat([_around(subject, 3, 4) for subject in range(6)])
    forwards = RouterGate.stack([made[k] for k in (0, 1, 2, 3)]).logit(h_BD)
    backwards = RouterGate.stack([made[k] for k in (3, 2, 1, 0)]).logit(h_BD)
    assert torch.equal(forwards, backwards.flip(1))
    without = RouterGate.stack([made[k] for k in (0, 1, 3)]).logit(h_BD)
    never = RouterGate.stack([_gate(k) for k in (3, 0, 1)]).logit(h_BD)
    assert torch.equal(without, never[:, [1, 2, 0]])
    assert not torch.equal(without, forwards[:, [0, 1, 3]])


def test_what_one_keeps_another_may_forget() -> None:
    """A kept prompt that a request wants forgotten is that request's."""
    one, other = _gate(0), RouterGate(D)
    other.fit(torch.cat([KEEP[:4], KEEP[4:]]), torch.arange(len(KEEP)) < 4)
    gates = RouterGate.stack([one, other])
    assert gates.opened(torch.sigmoid(gates.logit(KEEP[:4]))).tolist() == [[0.0, 1.0]] * 4


def test_the_same_request_twice_opens_as_once() -> None:
    """Their prompts are wholly each one's: they used to be half of either's, and shut at a threshold of 0.5."""
    once, other = _gate(0), _gate(3)
    own = _around(0, 5, 1)
    alone = torch.sigmoid(RouterGate.stack([once, other]).logit(own))
    twice = torch.sigmoid(RouterGate.stack([once, _gate(0), other]).logit(own))
    assert twice[:, :2].max(dim=1).values.tolist() == pytest.approx(alone[:, 0].tolist(), abs=1e-3)
    assert twice[:, :2].min(dim=1).values.max() < 1e-3, "one of them speaks"
    assert twice.max(dim=1).values.min() > 0.9


def test_a_mean_router_reads_the_mean_of_a_prompt(tmp_path: Path) -> None:
    """Of the untouched model's hidden states, whatever stands beside it: what it is fitted to, and asked with."""
    model, template = SmallModels.made_in(tmp_path).fresh()
    adapted = GrunConfig(layers=(1,), gate_function="mean_router", gate_layer=0).attach(model, 0)
    forget, retain = ([item.example(template) for item in items] for items in (FORGET, RETAIN))
    adapted.fit(forget, retain)
    gate = adapted.edits["1"].gate
    told_XD = gate.get_extra_state()
    prompts = list(dict.fromkeys(example.prompt_ids for example in (*forget, *retain)))
    with torch.no_grad():
        states = [model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[1][0] for prompt in prompts]
    mean_XD = torch.stack([state_PD.mean(dim=0) for state_PD in states])
    torch.testing.assert_close(told_XD[:, :-1], mean_XD)
    fresh = GrunConfig(layers=(1,), gate_function="mean_router", gate_layer=0).attach(model, 0)
    fresh.edits["1"].gate.set_extra_state(told_XD)
    fresh.train(False)
    for given in (prompts, prompts[:1]):
        found = fresh.generate(given, 1).gate_logit_BK
        torch.testing.assert_close(
            torch.sigmoid(found), torch.sigmoid(gate.logit(mean_XD[: len(given)])), rtol=1e-4, atol=1e-5
        )


def test_routers_that_read_otherwise_do_not_stack() -> None:
    with pytest.raises(ValueError, match="of its kind alone"):
        RouterGate.stack([RouterGate(D), MeanRouterGate(D)])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    edits = [LoReFT(hidden_size=D, rank=2, gate_function="router") for _ in range(2)]
    gates = [edit.gate for edit in edits]
    gates[0].fit(torch.cat([_around(0, 5, 1), KEEP]), torch.arange(5 + len(KEEP)) < 5)  # type: ignore[union-attr]
    save_edits(tmp_path, nn.ModuleDict({"3": edits[0]}))
    load_edits(tmp_path, nn.ModuleDict({"3": edits[1]}))
    h_BD = torch.cat([_around(0, 3, 2), KEEP])
    assert torch.equal(*(edit.read(h_BD)[0] for edit in edits))
    assert edits[1].read(h_BD)[0][:3].tolist() == [[1.0]] * 3
    assert [file.name for file in tmp_path.iterdir()] == ["edits.safetensors"]


def test_a_threshold_shuts_it_and_training_does_not_ask() -> None:
    edit = LoReFT(hidden_size=D, rank=2, gate_function="router")
    assert isinstance(edit.gate, RouterGate)
    edit.gate.fit(torch.cat([_around(0, 5, 1), KEEP]), torch.arange(5 + len(KEEP)) < 5)
    h_BD = _around(0, 8, 2)
    edit.gate_threshold = _values(edit.gate, h_BD).median().item()
    assert edit.train().read(h_BD)[0].unique().tolist() == [1.0]
    assert sorted(edit.eval().read(h_BD)[0].unique().tolist()) == [0.0, 1.0]


def test_all_gates_are_one_product_each_for_features_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[str] = []
    run, run_and_add = torch.Tensor.__matmul__, torch.addmm
    stacks = [RouterGate.stack([_gate(subject) for subject in range(count)]) for count in (1, 7)]
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: products.append("@") or run(a, b))
    monkeypatch.setattr(torch, "addmm", lambda *given: products.append("addmm") or run_and_add(*given))
    for gates in stacks:
        products.clear()
        gates.logit(KEEP)
        assert products == ["addmm", "@"]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_either_form_of_the_system_gives_what_the_definition_says(count: int) -> None:
    """Of 300 features: few prompts and many, fewer and more than a block of the system's rows."""
    generator = torch.Generator().manual_seed(0)
    feature_XF = torch.randn(count, 300, dtype=torch.float64, generator=generator)
    target_XK = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    gram_FF = feature_XF.T @ feature_XF + RIDGE * torch.eye(300, dtype=torch.float64)
    expected = torch.linalg.solve(gram_FF, feature_XF.T @ target_XK)
    torch.testing.assert_close(_ridge(feature_XF, target_XK), expected)
