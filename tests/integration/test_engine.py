"""The frozen-prefix engine is the plain pyvene path: losses, gradients, likelihoods, gates and answers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grun.adapters.grun import GrunConfig, set_gate_threshold
from grun.adapters.lora import LoraConfig
from grun.adapters.reft import ReftConfig
from grun.data import Example
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.errors import UserError
from grun.lm.patching import decoder_layers
from grun.lm.reading import eos_ids
from grun.losses import gate_bce
from grun.model import forward
from grun.model.forward import AnswerOutput, PlainModel, set_answer_ends
from grun.prompts.template import PromptTemplate
from grun.sequential import combine
from grun.testing.adapters import assert_drafts_change_nothing
from grun.training.reference import Reference

VOCABULARY = 97
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TOKENS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama, grouped-query, tied": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, **HEADS, **TOKENS, tie_word_embeddings=True)
    ),
    "llama, multi-head, untied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_attention_heads=4, **TOKENS)),
    "llama, eager attention": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, **HEADS, **TOKENS, attn_implementation="eager")
    ),
    "mistral, sliding window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, **HEADS, **TOKENS, sliding_window=6)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_attention_heads=4, num_key_value_heads=2, **TOKENS)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, **HEADS, **TOKENS)),
    "gemma2, sliding window, soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, **HEADS, **TOKENS, sliding_window=6, query_pre_attn_scalar=8)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=5, n_head=4, n_positions=128, **TOKENS)
    ),
}
CONFIGS = {
    "grun": GrunConfig(layers=(1, 2, 4), gate_function="mlp_3"),
    "grun, last layer": GrunConfig(layers=(4,)),
    "grun, first layer": GrunConfig(layers=(0, 3)),
    "reft": ReftConfig(layers=(2, 3)),
    "grun, latched": GrunConfig(layers=(1, 2, 4), gate_function="mlp_3", edits="answer"),
    "grun, last layer, latched": GrunConfig(layers=(4,), edits="answer"),
    "reft, first layer, latched": ReftConfig(layers=(0, 3), edits="answer"),
    "grun, gates on another layer": GrunConfig(layers=(1, 2), gate_layer=1.0),
    "grun, router": GrunConfig(layers=(1, 3), gate_function="router", edits="answer"),
    "grun, mean router": GrunConfig(layers=(1, 3), gate_function="mean_router", edits="answer"),
}


class _Tokenizer:
    eos_token_id = 1
    pad_token_id = 0
    chat_template = None


def _model(family: str) -> Any:
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    # Larger weights than at birth: so that attention patterns differ and a slip in a mask or a position would show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    set_answer_ends(model, PromptTemplate.of(_Tokenizer()))
    return model


def _examples() -> list[Example]:
    """Mixed lengths; several answers of one prompt; a one-token prompt and one-token answers among them."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(draw.randint(low, high)))

    prompts = [tokens(2, 14) for _ in range(7)] + [(5,)]
    examples = [Example(prompt_ids=prompt, answer_ids=(*tokens(1, 9), 1)) for prompt in prompts for _ in range(2)]
    return [*examples, Example(prompt_ids=prompts[0], answer_ids=(1,)), Example(prompt_ids=(5,), answer_ids=(7,))]


def _pair(family: str, config: Any, root: Path) -> tuple[EditedModel, EditedModel, list[Example]]:
    """The same module twice: on the plain path, through pyvene, and on the engine."""
    examples = _examples()
    plain, engine = config.attach(_model(family), 3).on_plain_path(), config.attach(_model(family), 3)
    lines: list[str] = []
    engine.use_prefix_caching(PrefixCaching(root=root, max_bytes=10**9, log=lines.append))
    engine.announce(examples, generate=True, progress=lambda done, total: None)
    assert lines == [], "the engine serves this family"
    for adapted in (plain, engine):
        adapted.fit(examples[:6], examples[6:])
        adapted.train(False)
    return plain, engine, examples


def _unasked(engine: EditedModel) -> EditedModel:
    """The same module on a model that has been told of no prompt."""
    edits = {layer: engine.edits[str(layer)] for layer in engine.layers}
    return EditedModel(engine.model, edits, engine.where, engine.gate_layer)


def _loss(adapted: EditedModel, examples: list[Example]) -> torch.Tensor:
    """A loss that touches everything: answers of the first half up, of the second half down, and the gates."""
    output = adapted.answer_output(examples)
    nll_B = output.scores.nll_B
    half = len(examples) // 2
    loss = nll_B[half:].mean() - nll_B[:half].mean()
    if output.gate_logit_BK is not None:
        loss = loss + gate_bce(output.gate_logit_BK, torch.arange(len(examples)) < half)
    return loss


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_agree(family: str, config: Any, tmp_path: Path) -> None:
    """Relative difference at most 1e-5, for the loss and for the gradient of every parameter; on an engine that knows
    the examples, and on one that does not."""
    plain, engine, examples = _pair(family, config, tmp_path)
    losses, gradients = [], []
    for adapted in (plain, engine, _unasked(engine)):
        adapted.train(True)
        loss = _loss(adapted, examples)
        gradients.append(torch.autograd.grad(loss, adapted.trainable_parameters()))
        losses.append(loss.item())
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        for mine, theirs in zip(found, gradients[0], strict=True):
            scale = theirs.norm()
            assert scale > 0
            assert (mine - theirs).norm() <= 1e-5 * scale


def _begun_alike(examples: list[Example]) -> list[Example]:
    """With a system text."""
    return [dataclasses.replace(example, prompt_ids=(9, 8, 7, 9, *example.prompt_ids)) for example in examples]


def _weights_gradients(model: Any, run: Callable[[], AnswerOutput]) -> tuple[float, list[torch.Tensor | None]]:
    """A loss that touches everything, and the gradients of all weights."""
    output = run()
    loss = output.scores.nll_B.mean() + output.logits_NV.square().mean()
    if output.hidden_ND is not None:
        loss = loss + output.hidden_ND.square().mean()
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def _assert_like(
    found: tuple[float, list[torch.Tensor | None]], wanted: tuple[float, list[torch.Tensor | None]]
) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert any(gradient is not None for gradient in wanted[1])
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert (mine - theirs).norm() <= 1e-5 * max(theirs.norm(), 1e-6)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_tokens_is_the_padded_batch(family: str, checkpointed: bool) -> None:
    """Loss and all weights' gradients, answers of any length, several of one prompt; and every token is read once."""
    model, examples = _model(family), _begun_alike(_examples())
    wanted = _weights_gradients(model, lambda: PlainModel(model).one_pass(examples, 2))
    adapted, read = PlainModel(model), []
    decoder_layers(model)[0].register_forward_pre_hook(lambda layer, args: read.append(tuple(args[0].shape[:2])))
    if checkpointed:
        adapted.train(True)  # none of these has dropout but GPT-2
        adapted.checkpoint_gradients()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attn_pdrop = 0.0
    _assert_like(_weights_gradients(model, lambda: adapted.answer_output(examples, 2)), wanted)
    is_packed = model.config._attn_implementation != "eager"
    num_tokens = sum(map(len, examples)) - 4 * (len(examples) - 1)
    assert (set(read) == {(1, num_tokens)}) == is_packed
    before = PlainModel(_model(family)).generate([example.prompt_ids for example in examples], 9).answers
    adapted.train(False)
    assert adapted.generate([example.prompt_ids for example in examples], 9).answers == before


@pytest.mark.parametrize("config", ["grun, latched", "reft", "grun, router", "grun, mean router"])
@pytest.mark.parametrize(
    "family",
    [
        "llama, grouped-query, tied",
        "llama, eager attention",
        "mistral, sliding window",
        "gemma2, sliding window, soft caps",
        "gpt2",
    ],
)
def test_an_attacker_gets_the_same_gradients(family: str, config: str, tmp_path: Path) -> None:
    """Of the weights under the edits, as through pyvene; and the answers of what he made are the same."""
    plain, engine, examples = _pair(family, CONFIGS[config], tmp_path)
    examples = _begun_alike(examples)
    found = []
    for adapted in (plain, engine.afresh()):
        adapted.model.requires_grad_(True)
        found.append(_weights_gradients(adapted.model, partial(adapted.answer_output, examples, adapted.layers[0])))
        adapted.model.requires_grad_(False)
    _assert_like(found[1], found[0])
    attacked = engine.afresh()
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    prompts = [example.prompt_ids for example in examples]
    assert attacked.generate(prompts, 12).answers == engine.on_plain_path().generate(prompts, 12).answers


@pytest.mark.parametrize("config", ["grun", "grun, latched"])
@pytest.mark.parametrize("layer", [1, 2, 3, 1.0], ids=["first edited", "edited", "between", "last edited"])
@pytest.mark.parametrize("family", ["llama, grouped-query, tied", "gpt2"])
def test_hidden_states_agree(family: str, layer: Any, config: str, tmp_path: Path) -> None:
    """The output of a layer, its own edit included; and every edit up to it gets a gradient, the last one too."""
    plain, engine, examples = _pair(family, CONFIGS[config], tmp_path)
    index = 4 if isinstance(layer, float) else layer
    hidden = []
    for adapted in (plain, engine):
        hidden.append(adapted.answer_output(examples, layer).hidden_ND)
        hidden[-1].square().mean().backward()
        for number, edit in adapted.edits.items():
            assert (edit.learned_source.weight.grad is not None) == (int(number) <= index)
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-5, atol=1e-5)
    untouched = PlainModel(plain.model).answer_output(examples, layer).hidden_ND
    assert not torch.allclose(hidden[0], untouched)


def test_a_layer_below_the_edits_is_refused(tmp_path: Path) -> None:
    """Nothing there can change: a loss on it would have no gradient."""
    for adapted in _pair("gpt2", CONFIGS["grun"], tmp_path)[:2]:
        with pytest.raises(UserError, match=r"forget_loss\.layer"):
            adapted.answer_output(_examples(), 0)


@pytest.mark.parametrize("family", ["llama, multi-head, untied", "gemma2, sliding window, soft caps", "gpt2"])
def test_the_reference_keeps_what_the_untouched_model_said(family: str) -> None:
    """Nll, logits (soft cap included) and hidden states, in any order of the examples, after an adapter has moved."""
    model, examples = _model(family), _examples()
    before = PlainModel(model).answer_output(examples, 2)
    reference = Reference(
        model,
        examples,
        needs=["nll", "logits", "hidden"],
        hidden_layer=2,
        batch_size=4,
        progress=lambda done, total: None,
    )
    adapted = LoraConfig().attach(model, 0)
    with torch.no_grad():
        for parameter in adapted.trainable_parameters():
            parameter.add_(0.1)
        assert not torch.allclose(adapted.answer_output(examples).logits_NV, before.logits_NV)
    nll_B = reference.known(examples, "nll")["reference_nll_B"]
    logits_NV = reference.known(examples, "logits")["reference_logits_NV"]
    hidden_ND = reference.known(examples, "hidden")["reference_hidden_ND"]
    torch.testing.assert_close(logits_NV, before.logits_NV, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden_ND, before.hidden_ND, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll_B, before.scores.nll_B, rtol=1e-5, atol=1e-5)
    assert torch.equal(reference.known(examples[::-1], "nll")["reference_nll_B"], nll_B.flip(0))


@pytest.mark.parametrize("config", [CONFIGS["grun"], CONFIGS["reft"]], ids=["grun", "reft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_gates_and_answers_agree(family: str, config: Any, tmp_path: Path) -> None:
    """Per-item nll and gates to 1e-5, greedy answers token for token, from left- and right-padded batches."""
    plain, engine, examples = _pair(family, config, tmp_path)
    with torch.no_grad():
        theirs, mine = plain.answer_output(examples), engine.answer_output(examples)
    torch.testing.assert_close(mine.scores.nll_B, theirs.scores.nll_B, rtol=1e-5, atol=1e-5)
    prompts = list(dict.fromkeys(example.prompt_ids for example in examples))
    generated = [adapted.generate(prompts, 12) for adapted in (plain, engine, _unasked(engine))]
    assert generated[2].answers == generated[1].answers == generated[0].answers
    assert len({tuple(answer) for answer in generated[0].answers}) > 1
    assert_drafts_change_nothing(engine, prompts, generated[1].answers, eos_ids(engine.model)[0])
    base = PlainModel(plain.model)
    assert_drafts_change_nothing(base, prompts, base.generate(prompts, 12).answers, eos_ids(engine.model)[0])
    if theirs.gate_logit_BK is not None:
        torch.testing.assert_close(mine.gate_logit_BK, theirs.gate_logit_BK, rtol=1e-5, atol=1e-5)
        gates = engine.prompt_gates(prompts)
        torch.testing.assert_close(gates, generated[0].gate_logit_BK, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gates, generated[2].gate_logit_BK, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edits", ["prompt_end", "answer"])
@pytest.mark.parametrize("family", ["llama, grouped-query, tied", "gpt2"])
def test_stacks_agree(family: str, edits: Any, tmp_path: Path) -> None:
    """Modules of three requests on one model: logits, gates and greedy answers by the engine as through pyvene."""
    config = GrunConfig(layers=(1, 3), edits=edits)
    bases, examples = _pair(family, config, tmp_path)[:2], _examples()
    prompts = list(dict.fromkeys(example.prompt_ids for example in examples))
    outputs, answers = [], []
    for base in bases:
        modules = {str(seed): config.attach(base.model, seed) for seed in range(3)}
        stacked = combine(base, modules, "top_1", 0.5)
        stacked.train(False)
        with torch.no_grad():
            outputs.append(stacked.answer_output(examples))
        answers.append(stacked.generate(prompts, 12).answers)
    torch.testing.assert_close(outputs[1].logits_NV, outputs[0].logits_NV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[1].gate_logit_BK, outputs[0].gate_logit_BK, rtol=1e-5, atol=1e-5)
    assert answers[1] == answers[0]
    untouched = PlainModel(bases[0].model).generate(prompts, 12).answers
    assert sum(mine != theirs for mine, theirs in zip(answers[0], untouched, strict=True)) > 0


@pytest.mark.parametrize("config", ["grun, latched", "reft, first layer, latched"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_latched_answer_is_what_teacher_forcing_says(family: str, config: str, tmp_path: Path) -> None:
    """Greedy decoding holds what the gate said at the prompt's end: scored along its own answer, every token is the
    model's first choice, with answers dropped from the batch on the way and prompts padded on the left."""
    plain, engine, examples = _pair(family, CONFIGS[config], tmp_path)
    prompts = list(dict.fromkeys(example.prompt_ids for example in examples))
    for adapted in (plain, engine, _unasked(engine)):
        answers = adapted.generate(prompts, 12).answers
        assert_drafts_change_nothing(adapted, prompts, answers, eos_ids(engine.model)[0])
        forced = [
            Example(prompt_ids=prompt, answer_ids=(*answer, 1)[:12])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        with torch.no_grad():
            output = plain.answer_output(forced)
        assert torch.equal(output.logits_NV.argmax(dim=-1), output.scores.label_N)


@torch.no_grad()
def test_a_shut_gate_shuts_the_whole_answer_out(tmp_path: Path) -> None:
    """Below the threshold a latched edit leaves every logit and every decoded token as the base model has them."""
    plain, engine, examples = _pair("gpt2", CONFIGS["grun, latched"], tmp_path)
    prompts = [example.prompt_ids for example in examples]
    base = PlainModel(plain.model)
    opened = plain.answer_output(examples).logits_NV
    for adapted in (plain, engine):
        set_gate_threshold(adapted, 1.0)
    with torch.enable_grad():  # else a plain model reads a prompt of several answers once, which rounds otherwise
        of_base = base.answer_output(examples).logits_NV
    assert torch.equal(plain.answer_output(examples).logits_NV, of_base)
    assert not torch.allclose(plain.answer_output(examples).logits_NV, opened)
    for adapted in (plain, engine, _unasked(engine)):
        assert adapted.generate(prompts, 12).answers == base.generate(prompts, 12).answers


@torch.no_grad()
def test_late_gates_read_the_untouched_model(tmp_path: Path) -> None:
    """All gates say what they make of the last layer's output without any edit, however far the edits below it go."""
    for adapted in _pair("qwen2", CONFIGS["grun, gates on another layer"], tmp_path)[:2]:
        examples = _examples()
        hidden_ND = PlainModel(adapted.model).answer_output(examples, 1.0).hidden_ND
        assert hidden_ND is not None
        first = torch.tensor([len(example.answer_ids) for example in examples]).cumsum(0).roll(1)
        first[0] = 0
        expected = torch.cat([edit.gate.logit(hidden_ND[first]) for edit in adapted.edits.values()], dim=1)
        torch.testing.assert_close(adapted.answer_output(examples).gate_logit_BK, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", ["grun, gates on another layer", "grun, router"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pass_that_late_gates_read_begins_the_answer(family: str, config: str, tmp_path: Path) -> None:
    """All prompts are read once, padded on the left. Shut: that is all. Open: their last tokens go through the later
    layers once more, and the answers are those through pyvene, which reads the prompts twice."""
    plain, engine, examples = _pair(family, CONFIGS[config], tmp_path)
    prompts = list(dict.fromkeys(example.prompt_ids for example in examples))
    unasked = _unasked(engine)
    first, longest, read = decoder_layers(engine.model)[0], max(map(len, prompts)), []
    first.register_forward_pre_hook(lambda layer, args, kwargs: read.append(args[0].shape[1]), with_kwargs=True)
    for threshold, passes in ((0.0, [longest, 1]), (1.0, [longest])):
        set_gate_threshold(plain, threshold)  # the same edits as the other's
        set_gate_threshold(unasked, threshold)
        read.clear()
        unasked.generate(prompts, 1)
        assert read == passes
        answers = unasked.generate(prompts, 12).answers
        assert answers == plain.generate(prompts, 12).answers
        assert (answers == PlainModel(engine.model).generate(prompts, 12).answers) == (threshold == 1.0)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_begin_with_is_read_once_before_the_edits(
    family: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that nothing has read, one of them twice: seven tokens that all begin with, then what is left of the
    longest; where late gates open, one more. The answers are those through pyvene, which reads every prompt whole."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", 0)
    plain, engine, _ = _pair(family, CONFIGS[config], tmp_path)
    prompts, _ = _one_prompt_begins_as_the_next()
    examples = [Example(prompt_ids=prompt, answer_ids=(3,)) for prompt in prompts]
    for adapted in (plain, engine):
        adapted.fit(examples[:1], examples[1:])  # a router opens for the first
    prompts.append(prompts[0])
    unasked, read = _unasked(engine), []
    decoder_layers(engine.model)[0].register_forward_pre_hook(lambda layer, args: read.append(args[0].shape[1]))
    for threshold in (0.0, 1.0):
        set_gate_threshold(plain, threshold)
        set_gate_threshold(unasked, threshold)
        read.clear()
        unasked.generate(prompts, 1)
        is_again = threshold == 0.0 and engine.gate_layer is not None
        at_once = [16] if config == "grun, mean router" else [7, 9]  # a mean is over all of a prompt
        assert read == [*at_once, *[1] * is_again]
        answered, expected = unasked.generate(prompts, 12), plain.generate(prompts, 12)
        assert answered.answers == expected.answers
        assert (answered.gate_logit_BK is None) == (expected.gate_logit_BK is None)
        if expected.gate_logit_BK is not None:
            gates = [torch.sigmoid(each.gate_logit_BK) for each in (answered, expected)]  # a router's nears 0 and 1
            torch.testing.assert_close(*gates, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_router_opens_for_what_is_to_be_forgotten(tmp_path: Path) -> None:
    """The first six examples, three prompts, are; the five others keep every bit of the base model's logits."""
    plain, engine, _ = _pair("gpt2", CONFIGS["grun, router"], tmp_path)
    for adapted in (plain, engine, _unasked(engine)):
        forget, kept = _examples()[:6], _examples()[6:-2]
        base = PlainModel(adapted.model)
        assert torch.sigmoid(adapted.answer_output(forget).gate_logit_BK).min() > 0.5
        assert not torch.allclose(adapted.answer_output(forget).logits_NV, base.answer_output(forget).logits_NV)
        for each in kept:
            assert torch.sigmoid(adapted.answer_output([each]).gate_logit_BK).max() < 1e-3
        prompts = [example.prompt_ids for example in kept]
        assert adapted.generate(prompts, 12).answers == base.generate(prompts, 12).answers


def _one_prompt_begins_as_the_next() -> tuple[list[tuple[int, ...]], Callable[[int], tuple[int, ...]]]:
    """Prompts that all begin with seven tokens, more than a window; what draws tokens."""
    draw = random.Random(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(count))

    begin = ids(7)
    return [(*begin, *ids(count)) for count in (1, 9, 4)], ids


@pytest.mark.parametrize("overhead", [0, 10**9], ids=["all that is shared is read once", "prompts are"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_is_read_once_says_the_same_of_its_answers(
    family: str, overhead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and answers of one token and more, longer than a window, among them answers that begin alike, that are
    the beginning of another and that are twice there: as read with each answer anew."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", overhead)
    torch.manual_seed(0)
    plain, (prompts, ids) = PlainModel(FAMILIES[family]().eval()), _one_prompt_begins_as_the_next()
    examples = [Example(prompt_ids=prompt, answer_ids=ids(count)) for count in (1, 4, 11) for prompt in prompts]
    stem = ids(8)
    alike = [(*stem, *ids(count)) for count in (1, 7, 3)] + [stem, (*stem[:5], *ids(6))]
    examples += [Example(prompt_ids=prompts[1], answer_ids=answer) for answer in (*alike, alike[0])]
    with_each = plain.answer_output(examples)
    with torch.no_grad():
        once = plain.answer_output(examples)
    torch.testing.assert_close(once.logits_NV, with_each.logits_NV, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.head_input_ND, with_each.head_input_ND, rtol=1e-5, atol=1e-5)


def test_what_is_shared_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts of 5 + 1, 5 + 2 and 5 + 3 tokens; the first has answers of 6 + 1 and 6 + 2, the others one of 3,
    and no answer's last token is read: 5, then 1 + 2 + 3, then 6 + 2 + 2, then 0 + 1 tokens."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", 0)
    model = _model("qwen2")
    prompts = [(5, 6, 7, 8, 9, *range(20, 21 + more)) for more in range(3)]
    answers = [(10, 11, 12, 13, 14, 15, 16), (10, 11, 12, 13, 14, 15, 17, 18)]
    examples = [Example(prompt_ids=prompts[0], answer_ids=answer) for answer in answers]
    examples += [Example(prompt_ids=prompt, answer_ids=(10, 11, 12)) for prompt in prompts[1:]]
    read: list[int] = []
    run = model.forward

    def counted(**inputs: Any) -> Any:
        ids_BT = inputs["input_ids"]
        read.append(int(inputs["attention_mask"][:, -ids_BT.shape[1] :].sum()))
        return run(**inputs)

    monkeypatch.setattr(model, "forward", counted)
    with torch.no_grad():
        PlainModel(model).answer_output(examples)
    assert sum(read) == 5 + (1 + 2 + 3) + (6 + 2 + 2) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_scoring_has_begun_goes_on_as_from_its_prompt(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First answers that are the model's own for 0, 1, 2, … tokens and then another's, one of them wholly: what is
    begun is that far, and goes on, with drafts and without, to what is decoded from the prompts."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", 0)
    plain = PlainModel(_model(family))
    prompts = list(dict.fromkeys(example.prompt_ids for example in _examples()))
    answers = [tuple(answer) for answer in plain.generate(prompts, 12).answers]
    wholly = next(at for at, answer in enumerate(answers) if len(answer) == 12)
    firsts = [
        (*answer[:right], *((token + 1) % VOCABULARY for token in answer[right:]), 3)
        for right, answer in enumerate(answers)
    ]
    firsts[wholly] = answers[wholly]
    others = [(*first[: len(first) // 2], 4, 5, 6) for first in firsts]
    with torch.no_grad():
        output = plain.answer_output(
            [
                Example(prompt_ids=prompt, answer_ids=answer)
                for own in (firsts, others)
                for prompt, answer in zip(prompts, own, strict=True)
            ]
        )
    assert set(output.begun) == set(prompts) - {prompts[wholly]}
    rights = {at: output.begun[prompt].right for at, prompt in enumerate(prompts) if prompt in output.begun}
    for at, right in rights.items():
        assert right == answers[at][: len(right)]
        assert len(right) == min(at, len(answers[at]))
    begun = list(output.begun.values())
    at_B = [prompts.index(prompt) for prompt in output.begun]
    ends = [(*answers[at], 1)[len(output.begun[prompts[at]].right) :] for at in at_B]
    for limit in (2, 12):
        for drafts in ([()] * len(begun), ends, [end[:1] for end in ends], [(3, *end) for end in ends]):
            assert forward.go_on(begun, limit, drafts) == [list(answers[at][:limit]) for at in at_B]
