"""Corrupted prompts: which entries, which tokens, by which noise; a shut gate; and that no loss has a part in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bench.config import RunConfig, run_config
from bench.runs.rows import config_columns
from grun.adapters.eco import CorruptedModel, Corruption, CorruptionName, EcoConfig, add_noise, scale_largest
from grun.adapters.grun import set_gate_threshold
from grun.data import Example
from grun.errors import UserError
from grun.model.forward import PlainModel
from grun.sequential import combine

PROMPTS = [(3, 4, 5, 6, 7), (8,), (9, 10, 11), (12, 13), (14, 15, 16, 17), (18, 19, 20)]
EXAMPLES = [Example(prompt_ids=prompt, answer_ids=prompt[::-1][: 1 + at % 3]) for at, prompt in enumerate(PROMPTS)]
ECO = EcoConfig()
FORGET, RETAIN = EXAMPLES[:3], EXAMPLES[3:]


@pytest.fixture
def model(drawn_model: Callable[..., Any]) -> Any:
    """Weights large enough for answers to differ."""
    return drawn_model(25.0, 1)


def _fitted(model: Any, config: EcoConfig = ECO, seed: int = 0) -> CorruptedModel:
    adapted = config.attach(model, seed)
    adapted.fit(FORGET, RETAIN)
    adapted.train(False)
    return adapted


@torch.no_grad()
def _logits(adapted: Any, examples: list[Example] = EXAMPLES) -> Tensor:
    return cast(Tensor, adapted.answer_output(examples).logits_NV)


def _answers(adapted: Any) -> list[list[int]]:
    return cast(list[list[int]], adapted.generate(PROMPTS, 8).answers)


def _is_open(adapted: Any) -> list[bool]:
    return [value >= 0.5 for value in torch.sigmoid(adapted.prompt_gates(PROMPTS))[:, 0].tolist()]


def test_the_formulas_by_hand() -> None:
    """Noise (10, 20) on the first two entries; of (1, −4, 3) and (0, 2, −1) the two largest are (−4, 3) and (2, −1)."""
    e_PD = torch.tensor([[1.0, -4.0, 3.0], [0.0, 2.0, -1.0]])
    noise_Pn = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    assert add_noise(e_PD, noise_Pn).tolist() == [[11.0, 16.0, 3.0], [30.0, 42.0, -1.0]]
    assert scale_largest(e_PD, 2, 0.0).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert scale_largest(e_PD, 2, -1.0).tolist() == [[1.0, 4.0, -3.0], [0.0, -2.0, 1.0]]
    assert scale_largest(e_PD, 1, 0.0).tolist() == [[1.0, 0.0, 3.0], [0.0, 0.0, -1.0]]


def test_noise_follows_from_seed_and_prompt_and_has_the_strength() -> None:
    """Asked again it is the same; of another prompt, at another token or by another seed it is not.

    4,000 draws of deviation 3: their own deviation is within 5 standard errors, 3 · 5 / √8000 = 0.17, of it.
    """
    one, other = (Corruption("noise", 1000, 3.0, seed, hidden_size=1001) for seed in (0, 1))
    nothing_PD, open_K, prompt = torch.zeros(4, 1001), torch.ones(1), (3, 4, 5, 6, 7)
    noise_PD = one.corrupted(prompt, nothing_PD, open_K)
    assert torch.equal(one.corrupted(prompt, nothing_PD, open_K), noise_PD)
    assert noise_PD[:, :1000].std().item() == pytest.approx(3.0, abs=0.17)
    assert noise_PD[:, 1000].tolist() == [0.0] * 4
    assert not torch.isclose(noise_PD[0, :1000], noise_PD[1, :1000]).any()
    for others in (one.corrupted((4, 3, 5, 6, 7), nothing_PD, open_K), other.corrupted(prompt, nothing_PD, open_K)):
        assert not torch.isclose(others[:, :1000], noise_PD[:, :1000]).any()


@pytest.mark.parametrize("corruption", ["noise", "zero_out", "flip_sign"])
def test_all_prompt_tokens_but_the_last_are_corrupted_and_nothing_else(model: Any, corruption: CorruptionName) -> None:
    """The model's own logits on embeddings that were corrupted by hand, one example at a time and unpadded; as
    decoding has them too, where prompts are padded on the other side: a greedy answer's tokens are their argmax."""
    adapted = _fitted(model, EcoConfig(corruption=corruption, dims=1.0, strength=50.0, gate_threshold=0.0))
    assert _is_open(adapted) == [True] * 3 + [False] * 3
    answers = _answers(adapted)
    told = [
        Example(prompt_ids=prompt, answer_ids=(*answer, 1)) for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]
    for examples in (EXAMPLES, told):
        expected = []
        for example, is_forgotten in zip(examples, _is_open(adapted), strict=True):
            read, end = example.prompt_ids + example.answer_ids[:-1], len(example.prompt_ids) - 1
            with torch.no_grad():
                e_LD = model.get_input_embeddings()(torch.tensor(read))
                if is_forgotten:
                    broken_PD = cast(Corruption, adapted.edits["0"]).corrupted(
                        example.prompt_ids, e_LD[:end], torch.ones(1)
                    )
                    e_LD = torch.cat([broken_PD, e_LD[end:]])
                expected.append(model(inputs_embeds=e_LD[None]).logits[0, end:])
        torch.testing.assert_close(_logits(adapted, examples), torch.cat(expected), rtol=1e-4, atol=1e-4)
    first_choices = _logits(adapted, told).argmax(dim=-1).split([len(example.answer_ids) for example in told])
    for choices, answer in zip(first_choices, answers, strict=True):
        assert choices[: len(answer)].tolist() == answer
    assert not torch.isclose(_logits(adapted, told[:1]), _logits(PlainModel(model), told[:1])).all()
    assert answers[0] != _answers(PlainModel(model))[0], "decoding starts from them too"


def test_a_shut_gate_is_the_base_model_bit_for_bit(model: Any) -> None:
    """Alone for the prompts whose gates are shut, and for all of them at a threshold that none reaches."""
    adapted, base = _fitted(model), PlainModel(model)
    assert torch.equal(_logits(adapted, RETAIN), _logits(base, RETAIN))
    assert _answers(adapted)[3:] == _answers(base)[3:]
    assert not torch.equal(_logits(adapted, FORGET), _logits(base, FORGET))
    set_gate_threshold(adapted, 1.0)
    assert torch.equal(_logits(adapted), _logits(base))
    assert _answers(adapted) == _answers(base)


def test_the_noise_is_the_same_after_it_was_saved(model: Any, tmp_path: Path) -> None:
    """Its seed is with the module, whatever `load` starts from."""
    config = EcoConfig(dims=1.0)
    adapted = _fitted(model, config, seed=3)
    config.save(adapted, tmp_path)
    loaded = config.load(model, tmp_path)
    assert torch.equal(_logits(loaded), _logits(adapted))
    assert not torch.equal(_logits(_fitted(model, config, seed=0)), _logits(adapted))
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_nothing_is_trained(model: Any) -> None:
    adapted = _fitted(model)
    assert adapted.trainable_parameters() == []
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_requests_stack_and_each_brings_its_own_noise(model: Any) -> None:
    """Two requests, a prompt each. With both on, each prompt is answered as with its own module alone; with one taken
    back, what the other does stays, bit for bit."""
    modules = {}
    for seed, (name, own) in enumerate({"a": EXAMPLES[0], "b": EXAMPLES[2]}.items()):
        modules[name] = EcoConfig(dims=1.0).attach(model, seed)
        modules[name].fit([own], RETAIN)
        modules[name].train(False)
    both = combine(modules["a"], modules, "top_1", 0.5)
    for example, name in ((EXAMPLES[0], "a"), (EXAMPLES[2], "b")):
        alone = combine(modules["a"], {name: modules[name]}, "top_1", 0.5)
        assert torch.equal(_logits(both, [example]), _logits(alone, [example]))
        assert not torch.equal(_logits(both, [example]), _logits(PlainModel(model), [example]))
    assert torch.equal(_logits(both, RETAIN), _logits(PlainModel(model), RETAIN))


@pytest.mark.parametrize(
    ("dims", "entries"), [(1, 1), (8, 8), (1.0, 8), (0.5, 4), (0.01, 1)], ids=["1", "8", "1.0", "0.5", "0.01"]
)
def test_entries_by_number_or_by_share(model: Any, dims: int | float, entries: int) -> None:
    """Of 8: a share is rounded, and never to none."""
    assert cast(Corruption, EcoConfig(dims=dims).attach(model, 0).edits["0"]).dims == entries


def test_more_entries_than_there_are_is_named(model: Any) -> None:
    with pytest.raises(UserError, match=r"^adapter\.dims: 9 is more than the hidden size; use at most 8$"):
        EcoConfig(dims=9).attach(model, 0)


def test_no_loss_has_a_part_in_it() -> None:
    """It is a method of its own; losses and training are not in its settings, its key or its row, and a loss that was
    asked for is refused."""
    config = run_config({"adapter": "eco"})
    assert config.method == "eco"
    assert not {"forget_loss", "retain_loss", "training"} & config.to_dict().keys()
    assert run_config(config.to_dict()) == config
    assert run_config({"adapter": "eco", "training": {"num_epochs": 7}}).run_key == config.run_key
    assert run_config({"adapter": "eco", "seed": 1}).run_key != config.run_key
    row = config_columns(config)
    assert (row["method"], row["gate_function"], row["gate_threshold"]) == ("eco", "router", 0.5)
    assert {row[name] for name in ("forget_loss", "retain_loss", "learning_rate", "num_epochs", "rank")} == {None}
    for loss in ("forget_loss", "retain_loss"):
        with pytest.raises(UserError, match=rf"^{loss}: eco is trained by no loss; leave it out$"):
            run_config({"adapter": "eco", loss: "pdu"})


def test_a_strength_is_a_module_of_its_own_and_a_threshold_is_not() -> None:
    config = RunConfig(adapter=EcoConfig())
    assert replace(config, adapter=EcoConfig(strength=1.0)).train_key != config.train_key
    assert replace(config, adapter=EcoConfig(gate_threshold=0.9)).train_key == config.train_key
