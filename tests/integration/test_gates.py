"""GRUN on a real forward pass: shut gates are the base model, the edit sits on one token, no hook stays behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.benchmarks.items import Benchmark
from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.adapters.reft import ReftConfig
from grun.data import Example, collate
from grun.model.forward import PlainModel
from grun.prompts.template import PromptTemplate

Fresh = Callable[[], tuple[Any, PromptTemplate]]


def _examples(template: PromptTemplate, benchmark: Benchmark) -> list[Example]:
    return [template.example(item.question, item.answer) for item in benchmark.forget_set]


@torch.no_grad()
def _logits(adapted: Any, examples: list[Example]) -> torch.Tensor:
    return adapted.answer_output(examples).logits_NV


def test_shut_gates_are_the_base_model_bit_for_bit(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    model, template = fresh_target()
    examples = _examples(template, small_benchmark)
    prompts = [example.prompt_ids for example in examples]
    base, base_answers = _logits(PlainModel(model), examples), PlainModel(model).generate(prompts, 20).answers
    adapted = GrunConfig(layers=(1, 2, 3)).attach(model, 0)
    adapted.train(False)
    assert not torch.allclose(_logits(adapted, examples), base), "open gates do edit"
    set_gate_threshold(adapted, 1.0)
    assert torch.equal(_logits(adapted, examples), base)
    assert adapted.generate(prompts, 20).answers == base_answers


def test_the_gates_are_reported_by_layer(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """The reported gate of the first edited layer is the gate function of the untouched hidden state there."""
    model, template = fresh_target()
    examples = _examples(template, small_benchmark)
    batch = collate(examples)
    with torch.no_grad():
        hidden = model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, output_hidden_states=True)
    adapted = GrunConfig(layers=(3, 1)).attach(model, 0)
    adapted.train(False)
    gates = adapted.answer_output(examples).gate_logit_BK
    assert gates.shape == (len(examples), 2)
    rows = torch.arange(len(examples))
    at_edit = hidden.hidden_states[2][rows, batch.edited_position_B]  # the output of block 1
    expected = adapted.edits["1"].gate.logit(at_edit)[:, 0]
    torch.testing.assert_close(gates[:, 0], expected)
    generated = adapted.generate([example.prompt_ids for example in examples], 3)
    torch.testing.assert_close(generated.gate_logit_BK, gates, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [GrunConfig(layers=(0, 2)), ReftConfig(layers=(0, 2))], ids=["grun", "reft"])
def test_generation_edits_the_prompt_and_never_a_decoded_token(
    config: Any, fresh_target: Fresh, small_benchmark: Benchmark
) -> None:
    """Teacher-forced logits along the generated answer, edited at the last prompt token only, pick the same tokens."""
    model, template = fresh_target()
    adapted = config.attach(model, 0)
    adapted.train(False)
    prompts = [template.prompt_ids(item.question) for item in small_benchmark.forget_set]
    for prompt, answer in zip(prompts, adapted.generate(prompts, 12).answers, strict=True):
        if answer:
            forced = _logits(adapted, [Example(prompt_ids=prompt, answer_ids=tuple(answer))])
            assert forced.argmax(dim=-1).tolist() == answer


@pytest.mark.parametrize("edits", ["prompt_end", "answer"])
def test_earlier_positions_are_untouched(edits: Any, fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """Logits at every prompt token before the last are the base model's, bit for bit."""
    model, template = fresh_target()
    examples = _examples(template, small_benchmark)[:1]
    batch = collate(examples)
    inputs = {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL}
    edited_at = int(batch.edited_position_B[0])
    with torch.no_grad():
        base = model(**inputs).logits
        adapted = GrunConfig(layers=(1, 3), edits=edits).attach(model, 0)
        adapted.train(False)
        editing = adapted.editing([examples[0].prompt_ids], batch.edited_position_B)
        edited = adapted._plain()(inputs, editing).logits
    assert torch.equal(edited[:, :edited_at], base[:, :edited_at])
    assert not torch.allclose(edited[:, edited_at], base[:, edited_at])


def test_no_hook_outlives_a_call(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    model, template = fresh_target()
    examples = _examples(template, small_benchmark)
    base = _logits(PlainModel(model), examples)
    adapted = GrunConfig(layers=(1, 3)).attach(model, 0)
    _logits(adapted, examples)
    adapted.generate([examples[0].prompt_ids], 4)
    assert torch.equal(_logits(PlainModel(model), examples), base)
    assert not any(module._forward_hooks for module in model.modules())
