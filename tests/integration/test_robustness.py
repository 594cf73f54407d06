"""Attacks: each asks what it says, finds what was only hidden, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench.benchmarks.items import Benchmark, Item
from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.evaluation import robustness
from bench.evaluation.asking import Asking, EvaluationConfig, RobustnessConfig
from bench.evaluation.robustness import attack, rounded
from bench.evaluation.score import score
from bench.metrics.rouge import rouge_l
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.run import run
from grun.adapters.gated_lora import GatedLoraConfig
from grun.adapters.grun import GrunConfig
from grun.adapters.lora import LoraConfig
from grun.adapters.none import NoneConfig
from grun.errors import UserError
from grun.model.forward import Generated, PlainModel, set_answer_ends
from grun.prompts.template import PromptTemplate

Fresh = Callable[[], tuple[Any, PromptTemplate]]


def _attack(adapted: Any, template: PromptTemplate, benchmark: Benchmark, **settings: Any) -> dict[str, list[Any]]:
    adapted.train(False)
    asking = Asking(adapted=adapted, template=template, config=EvaluationConfig(max_new_tokens=40, batch_size=8))
    config = RobustnessConfig(**({"relearn_items": 4} | settings))
    rows = attack(asking, list(enumerate(benchmark.forget_set)), config, 3e-3)
    by_split: dict[str, list[Any]] = {}
    for row in rows:
        by_split.setdefault(row["split"], []).append(row)
    return by_split


def _mean(rows: list[Any]) -> float:
    return sum(rouge_l(row["answer"], row["generation"]).recall for row in rows) / len(rows)


@pytest.mark.parametrize(
    "config", [GrunConfig(layers=(1, 2)), GatedLoraConfig(), LoraConfig(), NoneConfig()], ids=lambda c: c.name
)
def test_attacks_leave_the_model_as_it_was(config: Any, fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    model, template = fresh_target()
    adapted = config.attach(model, 0)
    adapted.train(False)
    examples = [template.example(*item.pair) for item in small_benchmark.forget_set]
    with torch.no_grad():
        before = adapted.answer_output(examples).logits_NV
    trains = [parameter.requires_grad for parameter in adapted.model.parameters()]
    _attack(adapted, template, small_benchmark)
    with torch.no_grad():
        assert torch.equal(adapted.answer_output(examples).logits_NV, before)
    assert [parameter.requires_grad for parameter in adapted.model.parameters()] == trains


def test_a_model_that_knows_gives_everything_away(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """The target model completes every answer, and its weights bear 8 bits; relearned items are the other six."""
    model, template = fresh_target()
    rows = _attack(PlainModel(model), template, small_benchmark, quantize=True)
    assert _mean(rows["forget_prefix_attack"]) > 0.95
    assert _mean(rows["forget_8_bit"]) > 0.95
    assert _mean(rows["forget_relearned"]) > 0.8
    assert [row["item_index"] for row in rows["forget_relearned"]] == list(range(4, 10))
    assert all(
        row["question"] == item.question
        for row, item in zip(rows["forget_4_bit"], small_benchmark.forget_set, strict=True)
    )


def test_the_prefix_attack_asks_for_the_rest(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """What is compared is the answer without what was given away."""
    model, template = fresh_target()
    rows = _attack(PlainModel(model), template, small_benchmark, prefix_share=0.5)["forget_prefix_attack"]
    for row, item in zip(rows, small_benchmark.forget_set, strict=True):
        assert item.answer.endswith(row["answer"])
        assert 0 < len(row["answer"]) < len(item.answer)


def test_what_never_comes_back_is_zero_and_not_missing(
    fresh_target: Fresh, small_benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that answers nothing at all, relearned at any rate: six rows, ROUGE-L 0. An attacker who has no items
    relearns nothing: no rows."""
    model, template = fresh_target()
    monkeypatch.setattr(PlainModel, "generate", lambda self, prompts, _: Generated(answers=[[]] * len(prompts)))
    rows = _attack(PlainModel(model), template, small_benchmark)["forget_relearned"]
    assert len(rows) == 6
    assert score(rows, None, 0.0) == {"forget_relearned_rouge_l_recall": 0.0}
    monkeypatch.setattr(robustness, "relearned", None)
    assert "forget_relearned" not in _attack(PlainModel(model), template, small_benchmark, relearn_items=0)


def test_an_answer_of_one_token_has_no_rest(fresh_target: Fresh) -> None:
    """Given away it is whole, and what is left could never come back: such items are out, and so is the score."""
    model, template = fresh_target()
    short, long = Item(question="Which?", answer="a"), Item(question="Where?", answer="a b c")
    assert len(short.example(template).answer_ids) == 2, "the token and the EOS"
    asking = Asking(adapted=PlainModel(model), template=template, config=EvaluationConfig(max_new_tokens=4))
    config = RobustnessConfig(prefix_share=0.01)
    rows = attack(asking, [(0, short), (1, long)], config, 1e-3)
    assert [row["item_index"] for row in rows if row["split"] == "forget_prefix_attack"] == [1]
    rows = attack(asking, [(0, short)], config, 1e-3)
    assert "forget_prefix_attack_rouge_l_recall" not in score(rows, None, 0.0)


def test_weights_are_rounded_to_what_their_bits_can_say() -> None:
    """8 bits: a row whose largest is 127 is rounded to whole numbers, one with 254 to even ones, one of zeros stays.

    4 bits: from 0 to 15 and from -30 to 30 in sixteen values, in steps of 1 and of 4. Of 192 weights in a row groups
    are 96, as 128 does not divide it: the second one's step is 10.
    """
    row, zeros = torch.tensor([127.0, 0.4, -3.6, 2.9]), torch.zeros(4)
    eight = rounded(torch.stack([row, 2 * row, zeros]), 8)
    assert eight.tolist() == [[127, 0, -4, 3], [254, 0, -8, 6], [0, 0, 0, 0]]
    four = rounded(torch.tensor([[0.0, 15.0, 3.4, 7.6], [-30.0, 30.0, 4.1, -3.9], [2.0] * 4]), 4)
    assert four.tolist() == [[0, 15, 3, 8], [-30, 30, 6, -2], [2, 2, 2, 2]]
    halves = [torch.tensor([0.0, 15.0 * step, *[7.4 * step] * 94]) for step in (1, 10)]
    wide = rounded(torch.cat(halves)[None], 4)[0]
    assert wide[2:96].unique().tolist() == [7.0]
    assert wide[98:].unique().tolist() == [70.0]


def test_quantisation_that_rounds_nothing_is_refused(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """GPT-2's layers are none of torch's linear ones."""
    _, template = fresh_target()
    sizes = {"vocab_size": len(template.tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    set_answer_ends(model, template)
    with pytest.raises(UserError, match=r"quantize: no layer of a GPT2LMHeadModel can be rounded; leave it out"):
        _attack(PlainModel(model), template, small_benchmark, quantize=True)


def test_shallow_unlearning_comes_back(fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """A module that hides everything at the last prompt token: ten steps on four items bring the other six back."""
    model, template = fresh_target()
    adapted = GrunConfig(layers=(3,)).attach(model, 0)
    with torch.no_grad():
        edit = adapted.edits["3"]
        edit.gate[0].bias.fill_(50.0)
        edit.learned_source.bias.fill_(10.0)
    adapted.train(False)
    prompts = [template.prompt_ids(item.question) for item in small_benchmark.forget_set]
    hidden = [template.text(answer) for answer in adapted.generate(prompts, 40).answers]
    recalls = [rouge_l(item.answer, text).recall for item, text in zip(small_benchmark.forget_set, hidden, strict=True)]
    assert sum(recalls) / len(recalls) < 0.3
    rows = _attack(adapted, template, small_benchmark)
    assert _mean(rows["forget_relearned"]) > 0.7
    assert all(row["gate"] == [pytest.approx(1.0)] for row in rows["forget_paraphrased_question"])


def test_training_against_relearning_holds(small_config: RunConfig, small_results: Path) -> None:
    """A trained gate that relearning turns shut stays open where it was trained against that; utility pays some.

    Of seeds 0 to 3 relearning brought back 0.88 to 1.00 before and 0.37 to 0.78 after, 0.83 to 1.00 of the gates shut
    before, none after.
    """
    settings = {
        "adapter.edits": "answer",
        "forget_loss": "idk",
        "training.retain_weight": 2.0,
        "training.num_epochs": 80,
        "evaluation.robustness.relearn_items": 4,
    }
    plain = run_config(overlay(small_config.to_dict(), settings))
    against = run_config(overlay(plain.to_dict(), {"training.against_relearning": {"items": 5, "weight": 2.0}}))
    execution = Execution(results=small_results)
    (before,), (after,) = (run(config, execution) for config in (plain, against))
    for row in (before, after):
        assert row["forget_rouge_l_recall"] < 0.2
        assert row["model_utility"] > 0.85
    assert before["forget_relearned_rouge_l_recall"] > 0.7
    assert after["forget_relearned_rouge_l_recall"] < 0.5
    assert after["forget_relearned_rouge_l_recall"] < before["forget_relearned_rouge_l_recall"] - 0.1
    assert before["forget_relearned_gate_shut_share"] > 0.5
    assert after["forget_relearned_gate_shut_share"] < 0.2


def test_columns_beside_the_scores(small_config: RunConfig, small_results: Path, capsys: Any) -> None:
    """Trained once; `evaluate --robustness` adds a row with the attacks' columns, and the other scores stay."""
    execution = Execution(results=small_results)
    (row,) = run(small_config, execution)
    main(["evaluate", str(small_results / "modules" / row["train_key"]), "--robustness"])
    attacked = run_config(overlay(small_config.to_dict(), {"evaluation.robustness": {}}))
    again = store.read_run(small_results, attacked.run_key)
    assert again is not None
    assert again["train_seconds"] == row["train_seconds"]
    assert again["model_utility"] == pytest.approx(row["model_utility"], rel=1e-3)
    for name in ("paraphrased_question", "prefix_attack", "relearned"):
        assert 0.0 <= again[f"forget_{name}_rouge_l_recall"] <= 1.0
        assert 0.0 <= again[f"forget_{name}_gate_shut_share"] <= 1.0
        assert row[f"forget_{name}_rouge_l_recall"] is None
    assert again["forget_8_bit_rouge_l_recall"] is None
    target = store.read_run(small_results, prerequisite(attacked, "target_model").run_key)
    assert target is not None
    assert target["forget_prefix_attack_rouge_l_recall"] > 0.95
    assert target["forget_prefix_attack_gate_shut_share"] is None
