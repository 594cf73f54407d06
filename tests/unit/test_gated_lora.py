"""LoRA behind a gate: shut it is the base model, open it is LoRA, and several of them add up or one alone decides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from torch import Tensor, nn

from bench.sequential.scores import PREFILL_REPEATS, prefill_seconds
from grun.adapters.gated_lora import GatedLoraConfig, LowRankUpdates, UpdatedModel
from grun.adapters.grun import gates_forced, set_gate_threshold
from grun.data import Example
from grun.errors import UserError
from grun.lm.patching import decoder_layers
from grun.model import forward
from grun.model.forward import PlainModel
from grun.sequential import combine, load_deployment, save_deployment

CONFIG = GatedLoraConfig(r=2, alpha=4.0, gate_function="linear", gate_threshold=0.5)
PROMPTS = [(3, 4, 5, 6, 7), (8,), (9, 10, 11), (12, 13), (14, 15, 16, 17), (18, 19, 20)]
EXAMPLES = [Example(prompt_ids=prompt, answer_ids=prompt[::-1][: 1 + at % 3]) for at, prompt in enumerate(PROMPTS)]


@pytest.fixture
def model(drawn_model: Callable[..., Any]) -> Any:
    """Weights large enough for answers to differ; a third of all tokens ends an answer, so that they end apart."""
    return drawn_model(8.0, [1, *range(20, 30)])


def _trained(model: Any, seed: int = 0, config: GatedLoraConfig = CONFIG) -> UpdatedModel:
    """As if it had been trained: updates that are not 0, and a gate that is above 1/2 for some of the prompts."""
    adapted = config.attach(model, seed)
    adapted.train(False)
    updates, gate = _updates(adapted), cast(Any, _updates(adapted).gate)
    torch.manual_seed(seed)
    with torch.no_grad():
        for up in updates.up_OR.values():
            up.normal_(std=0.5)
        hidden_BD = adapted._gate_hidden(PROMPTS)
        gate[0].bias.copy_(-gate.logit(hidden_BD).median() - 0.01)
    return adapted


def _updates(adapted: UpdatedModel) -> LowRankUpdates:
    return cast(LowRankUpdates, adapted.edits["0"])


def _by_layer(adapted: UpdatedModel) -> Iterator[tuple[int, Any]]:
    return ((int(layer), edit) for layer, edit in adapted.edits.items())


@torch.no_grad()
def _logits(adapted: Any, examples: list[Example] = EXAMPLES) -> Tensor:
    return cast(Tensor, adapted.answer_output(examples).logits_NV)


def _answers(adapted: Any) -> list[list[int]]:
    return cast(list[list[int]], adapted.generate(PROMPTS, 8).answers)


def _gates(adapted: Any) -> Tensor:
    return torch.sigmoid(adapted.prompt_gates(PROMPTS))


def test_an_update_by_hand() -> None:
    """V = (1, 2), U = 3, α / R = 2: of x = (1, 1) it is 2 · 3 · (1 + 2) = 18, and half of that behind a gate of 1/2."""
    updates = LowRankUpdates(
        {"a.b": (1, 2)}, rank=1, scale=2.0, dropout=0.0, gate_function="linear", hidden_size=4
    ).eval()
    with torch.no_grad():
        down_RI, up_OR = updates.factors("a.b")
        down_RI.copy_(torch.tensor([[1.0, 2.0]]))
        up_OR.fill_(3.0)
        added_BTO = updates.update("a.b", torch.ones(2, 1, 2), torch.tensor([[1.0], [0.5]]))
    assert added_BTO.tolist() == [[[18.0]], [[9.0]]]


def test_a_shut_gate_is_the_base_model_bit_for_bit(model: Any) -> None:
    base, base_answers = _logits(PlainModel(model)), _answers(PlainModel(model))
    adapted = _trained(model)
    assert not torch.allclose(_logits(adapted), base), "open gates do change something"
    assert _answers(adapted) != base_answers
    set_gate_threshold(adapted, 1.0)
    assert torch.equal(_logits(adapted), base)
    assert _answers(adapted) == base_answers
    assert torch.equal(_logits(PlainModel(model)), base), "nothing stays behind"


def test_a_shut_gate_among_open_ones_is_the_base_model_bit_for_bit(model: Any) -> None:
    """Beside the base model's logits of the same batch, padding and all: no row of an open prompt reaches another."""
    adapted = _trained(model)
    is_open_B = _gates(adapted)[:, 0] >= 0.5
    lengths = [len(example.answer_ids) for example in EXAMPLES]
    mixed, base = _logits(adapted).split(lengths), _logits(PlainModel(model)).split(lengths)
    assert [not torch.equal(one, other) for one, other in zip(mixed, base, strict=True)] == is_open_B.tolist()
    assert 0 < int(is_open_B.sum()) < len(EXAMPLES)


def test_an_open_gate_is_lora(model: Any) -> None:
    """σ(40) is 1 in float32: with the same factors in PEFT's hands, the same layers get the same updates."""
    adapted = _trained(model)
    with torch.no_grad():
        gate = cast(nn.Sequential, _updates(adapted).gate)
        cast(nn.Linear, gate[0]).weight.zero_()
        cast(nn.Linear, gate[0]).bias.fill_(40.0)
    config = peft.LoraConfig(r=2, lora_alpha=4.0, target_modules="all-linear", task_type="CAUSAL_LM")
    lora = peft.get_peft_model(copy.deepcopy(model), config).eval()
    own = dict(lora.named_parameters())
    assert sum("lora_A" in name for name in own) == len(_updates(adapted).names)
    with torch.no_grad():
        for name in _updates(adapted).names:
            for letter, factor in zip("AB", _updates(adapted).factors(name), strict=True):
                own[f"base_model.model.{name}.lora_{letter}.default.weight"].copy_(factor)
    torch.testing.assert_close(_logits(adapted), _logits(PlainModel(lora)), rtol=1e-5, atol=1e-5)
    assert _answers(adapted) == _answers(PlainModel(lora))


def test_together_is_alone(model: Any) -> None:
    """Open and shut gates, long and short prompts in one batch, padded on the right where answers are scored and on
    the left where they are decoded: what each prompt gets alone. Answers end apart, and unfinished ones go on."""
    adapted = _trained(model)
    assert 0 < int((_gates(adapted) >= 0.5).sum()) < len(PROMPTS)
    alone = torch.cat([_logits(adapted, [example]) for example in EXAMPLES])
    torch.testing.assert_close(_logits(adapted), alone, rtol=1e-5, atol=1e-5)
    answers = _answers(adapted)
    assert answers == [adapted.generate([prompt], 8).answers[0] for prompt in PROMPTS]
    assert len({len(answer) for answer in answers}) > 1


def test_the_answer_is_under_what_the_prompt_opened(model: Any) -> None:
    """Scored along its own answer, each answer's tokens are the likeliest: the gate holds while it is decoded."""
    adapted = _trained(model)
    for prompt, answer in zip(PROMPTS, _answers(adapted), strict=True):
        if answer:
            forced = _logits(adapted, [Example(prompt_ids=prompt, answer_ids=tuple(answer))])
            assert forced.argmax(dim=-1).tolist() == answer


def test_gates_read_the_untouched_model(model: Any) -> None:
    """The reported gate is that of the named layer's output with no update in, in a batch and beside an answer."""
    adapted = _trained(model, config=GatedLoraConfig(r=2, gate_function="linear", gate_layer=1))
    for prompt in PROMPTS:
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[2]
        expected = cast(Any, _updates(adapted).gate).logit(hidden[:, -1])
        output = adapted.answer_output([Example(prompt_ids=prompt, answer_ids=(5, 6))])
        torch.testing.assert_close(output.gate_logit_BK, expected, rtol=1e-5, atol=1e-5)


def test_forced_gates_are_heeded(model: Any) -> None:
    adapted = _trained(model)
    base = _logits(PlainModel(model))
    with gates_forced(adapted, [False]):
        assert torch.equal(_logits(adapted), base)
    set_gate_threshold(adapted, 1.0)
    with gates_forced(adapted, [True]):
        forced = _logits(adapted)
    set_gate_threshold(adapted, 0.0)
    assert torch.equal(forced, _logits(adapted))


def test_a_step_moves_gate_and_updates_alone(model: Any) -> None:
    """Also where the gate is all but shut: a soft gate hands on a gradient, to itself and to what is behind it."""
    adapted = _trained(model)
    adapted.train(True)
    set_gate_threshold(adapted, 1.0)
    adapted.answer_output(EXAMPLES).scores.nll_N.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapted.trainable_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_prompt_costs_is_both_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a gate is open, the untouched one that the gates read, and the updated one; else the former alone. Between
    them the bare one. What the gates read of a prompt is read once: an evaluation asks at several thresholds."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", 10**9)  # one pass is one
    trained = _trained(model)
    adapted = UpdatedModel(model, dict(_by_layer(trained)), "answer", trained.gate_layer)
    passes: list[int] = []
    model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    prefill_seconds(adapted, PROMPTS)
    assert len(passes) == 3 * PREFILL_REPEATS
    set_gate_threshold(adapted, 1.0)
    prefill_seconds(adapted, PROMPTS)
    assert len(passes) == (3 + 2) * PREFILL_REPEATS
    set_gate_threshold(adapted, 0.0)
    adapted.prompt_gates(PROMPTS)
    passes.clear()
    adapted.generate(PROMPTS, 1)
    assert len(passes) == 1


@torch.no_grad()
@pytest.mark.parametrize("overhead", [0, 10**9], ids=["what is shared is read once", "each is read whole"])
def test_only_open_prompts_are_read_again(model: Any, overhead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt's gate is open, the others' are shut: theirs are the untouched model's answers, and none of them is in
    the second pass; all as when each is asked alone, with drafts and without."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", overhead)
    adapted = _trained(model)
    prompts = [(5, 6, 7, 8, *prompt) for prompt in PROMPTS]
    gates_B = torch.sigmoid(adapted.prompt_gates(prompts))[:, 0]
    set_gate_threshold(adapted, float(gates_B.max()))
    alone = [adapted.generate([prompt], 12).answers[0] for prompt in prompts]
    base = PlainModel(model).generate(prompts, 12).answers
    first = int(gates_B.argmax())
    assert [at for at in range(len(prompts)) if alone[at] != base[at]] == [first]
    read: list[int] = []
    decoder_layers(model)[0].register_forward_pre_hook(lambda layer, args: read.append(len(args[0])))
    for drafts in ((), base):
        for asked in (adapted, UpdatedModel(model, dict(_by_layer(adapted)), "answer", adapted.gate_layer)):
            read.clear()
            assert asked.generate(prompts, 12, drafts).answers == alone
            assert 1 in read
            if asked is not adapted:
                assert read[0 if overhead else 1] == len(prompts)


@torch.no_grad()
def test_no_answer_is_begun_that_nothing_goes_on_from(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of each first answer are copied for a model that decodes from them, which this one does not."""
    copied: list[Any] = []
    monkeypatch.setattr("grun.lm.side_by_side.begin", lambda *read: copied.append(read))
    twice = [*EXAMPLES, *EXAMPLES]
    assert not _trained(model).answer_output(twice).begun
    assert copied == []
    forward.PlainModel(model).answer_output(twice)
    assert copied != []


@torch.no_grad()
def test_gates_are_read_in_full_precision(model: Any) -> None:
    """On a GPU the model is run in bfloat16, and the gates are not: what opens one is the same wherever it is asked."""
    with forward.as_on_a_gpu():
        adapted = _trained(model)
        asked = UpdatedModel(model, dict(_by_layer(adapted)), "answer", adapted.gate_layer)
        for prompt in PROMPTS:
            logit_BK = asked.generate([prompt], 1).gate_logit_BK
            assert logit_BK is not None
            assert logit_BK.dtype == torch.float32
            torch.testing.assert_close(logit_BK, asked.prompt_gates([prompt]), rtol=1e-5, atol=1e-5)


def test_several_requests(model: Any) -> None:
    """sum: each prompt's tokens get every open request's updates; top_1: those of the request most open to it."""
    modules = {f"{seed:03d}": _trained(model, seed) for seed in range(3)}
    base = modules["000"]
    for combination, gate_threshold in (("sum", 0.0), ("sum", 0.5), ("top_1", 0.5)):
        combined = combine(base, modules, combination, gate_threshold)  # type: ignore[arg-type]
        gates_BK = torch.cat([_gates(module) for module in modules.values()], dim=1)
        torch.testing.assert_close(_gates(combined), gates_BK, rtol=1e-5, atol=1e-6)
        weight_BK = gates_BK * (gates_BK >= gate_threshold)
        if combination == "top_1":
            weight_BK = weight_BK * (gates_BK == gates_BK.max(dim=1, keepdim=True).values)
        name = _updates(base).names[0]
        x_BTI = torch.randn(len(PROMPTS), 2, _updates(base).factors(name)[0].shape[1])
        with torch.no_grad():
            own = [_updates(each).update(name, x_BTI, weight_BK[:, [k]]) for k, each in enumerate(modules.values())]
            stacked = cast(Any, combined.edits["0"]).update(name, x_BTI, weight_BK)
        torch.testing.assert_close(stacked, sum(own), rtol=1e-5, atol=1e-5)
        assert torch.equal(cast(Any, combined.edits["0"]).weight(gates_BK), weight_BK)


def test_with_one_request_nothing_is_different(model: Any) -> None:
    adapted = _trained(model)
    combined = combine(adapted, {"001": adapted}, "top_1", 0.5)
    torch.testing.assert_close(_logits(combined), _logits(adapted), rtol=1e-5, atol=1e-5)
    assert _answers(combined) == _answers(adapted)
    shut = combine(adapted, {"001": adapted}, "top_1", 1.0)
    assert torch.equal(_logits(shut), _logits(PlainModel(model)))


def test_taken_back_is_as_if_it_had_never_been(model: Any) -> None:
    modules = {f"{seed:03d}": _trained(model, seed) for seed in range(3)}
    base = modules["000"]
    whole = combine(base, modules, "sum", 0.0)
    without = combine(base, {name: module for name, module in modules.items() if name != "001"}, "sum", 0.0)
    never = combine(base, {name: modules[name] for name in ("000", "002")}, "sum", 0.0)
    assert torch.equal(_logits(without), _logits(never))
    assert not torch.allclose(_logits(without), _logits(whole))


def test_requests_of_different_settings_are_refused(model: Any) -> None:
    one, other = _trained(model), _trained(model, config=GatedLoraConfig(r=3, gate_function="linear"))
    with pytest.raises(UserError, match="requests: their modules differ in rank or gate function"):
        combine(one, {"a": one, "b": other}, "sum", 0.5)


class _Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing here is text."""


def test_a_deployment_is_what_was_deployed(model: Any, tmp_path: Path) -> None:
    """Two modules saved and loaded: the same logits, which are not the model's own."""
    modules = {name: _trained(model, seed) for seed, name in enumerate("ab")}
    folders = {name: tmp_path / name for name in modules}
    for name, module in modules.items():
        folders[name].mkdir()
        CONFIG.save(module, folders[name])
    save_deployment(tmp_path / "all", model, _Tokenizer(), CONFIG, folders, "top_1", 0.5)
    loaded, ours = load_deployment(tmp_path / "all", model), combine(modules["a"], modules, "top_1", 0.5)
    assert torch.equal(_logits(loaded), _logits(ours))
    assert not torch.allclose(_logits(loaded), _logits(PlainModel(model)))
