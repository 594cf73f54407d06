"""MUSE's own layout with made-up news: its prompts, what is compared, its folds; a run, and a sequence of requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.benchmarks.items import Item
from bench.benchmarks.muse import KNOWMEM_ENDS, MuseConfig, pieces
from bench.config import overlay, run_config
from bench.models.pretrained import load_tokenizer
from bench.results.requests import read_requests
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from bench.sequential.request import RequestSequence, Variant
from bench.sequential.run import run_sequence
from grun.errors import UserError
from grun.prompts.template import PromptTemplate

SETTINGS = {
    "benchmark": "muse",
    "benchmark.forget_split": "sust",
    "model.num_layers": 4,
    "model.hidden_size": 64,
    "model.vocab_size": 400,
    "model.fine_tuning.num_epochs": 100,
    "model.fine_tuning.batch_size": 4,
    "evaluation.max_new_tokens": 30,
    "adapter": "grun",
    "adapter.edits": "answer",
    "adapter.layers": [1, 3],
    "adapter.learning_rate": 0.02,
    "training.num_epochs": 60,
}


@pytest.fixture(scope="session")
def template(target_folder: str) -> PromptTemplate:
    """Of the small model, which has no chat template."""
    return PromptTemplate.of(load_tokenizer(target_folder))


def test_what_is_forgotten_asked_and_compared(muse_dir: Path) -> None:
    """Eight texts of four people; `scal_2` is the first four of them, `sust` all, in four requests of two."""
    benchmark = MuseConfig(data_dir=str(muse_dir)).load()
    assert {name: len(items) for name, items in benchmark.evaluation.items()} == {
        "forget_verbmem": 8,
        "forget_knowmem": 4,
        "retain_knowmem": 4,
        "forget_whole": 8,
        "holdout_whole": 16,
    }
    assert len(benchmark.forget_set) == len(benchmark.retain_set) == 8
    assert not benchmark.requests
    assert len(MuseConfig(data_dir=str(muse_dir), forget_split="scal_2").load().forget_set) == 4
    sustained = MuseConfig(data_dir=str(muse_dir), forget_split="sust").load()
    assert {name: len(items) for name, items in sustained.requests.items()} == {f"forget_{n}": 2 for n in range(1, 5)}
    assert sustained.evaluation["forget_sust"] == sustained.forget_set == benchmark.forget_set
    with pytest.raises(UserError, match=r"benchmark\.data_dir: .*raw/forget\.json cannot be read"):
        MuseConfig(data_dir=str(muse_dir / "raw")).load()


def test_a_question_stands_behind_its_examples(muse_dir: Path, template: PromptTemplate) -> None:
    """As MUSE puts it: each example as a paragraph, the question, and nothing behind `Answer:`."""
    item = MuseConfig(data_dir=str(muse_dir)).load().evaluation["retain_knowmem"][0]
    asked = template.tokenizer.decode(item.example(template).prompt_ids, skip_special_tokens=True)
    assert asked.endswith(
        "Question: What is a saw?\nAnswer: A tool\n\nQuestion: What is a drill?\nAnswer: A tool\n\n"
        "Question: Clamp at the market?\nAnswer:"
    )


@pytest.mark.parametrize(
    ("said", "kept"), [("Ada\n\nQuestion: Who?", "Ada"), (" Ada Question: B", "Ada"), ("Ada\nBo", "Ada\nBo")]
)
def test_an_answer_ends_where_another_question_begins(said: str, kept: str, template: PromptTemplate) -> None:
    item = Item(question="Who?", answer="Ada", ends=KNOWMEM_ENDS, max_new_tokens=32)
    said_ids = template.tokenizer(said, add_special_tokens=False).input_ids
    assert item.generation(template, said_ids) == kept


def test_a_text_is_cut_between_words() -> None:
    """Eight characters at most, the last piece ten: `aaa bbb cc` has ten, and a blank behind the first seven."""
    assert pieces(" aaa bbb cc ddd eee ", 8) == ["aaa bbb", "cc ddd eee"]
    assert pieces("aaa bbb cc", 8) == ["aaa bbb cc"]
    assert pieces("一二三四五六七", 4) == ["一二三四", "五六七"]


def test_a_run_and_two_requests(muse_dir: Path, tmp_path: Path) -> None:
    """What the target gives word for word is gone where GRUN was trained; utility is what it knows of the retain set.

    Of two requests, one after the other: a row each, measured on the texts that it asks to be forgotten.
    """
    execution = Execution(results=tmp_path)
    config = run_config(overlay({}, SETTINGS | {"benchmark.data_dir": str(muse_dir)}))
    rows = {row["method"]: row for row in run_prerequisites(config, execution)}
    target, retain_model = rows["target_model"], rows["retain_model"]
    assert target["forget_verbmem_rouge_l_recall"] > 0.9
    assert target["forget_verbmem_extraction_strength"] > 0.9
    assert min(target[f"{side}_knowmem_rouge_l_f1"] for side in ("forget", "retain")) > 0.6
    assert target["partial_model_utility"] == pytest.approx(target["retain_knowmem_rouge_l_recall"])
    assert target["privleak"] < -50
    assert retain_model["forget_knowmem_rouge_l_f1"] < target["forget_knowmem_rouge_l_f1"]
    assert retain_model["privleak"] == 0.0
    (row,) = run(config, execution)
    assert row["forget_sust_rouge_l_recall"] < target["forget_sust_rouge_l_recall"]
    variant = Variant(combination="top_1", gate_threshold=0.5)
    sequence = RequestSequence(study="sust", config=config, num_requests=2, extra_requests=(), variants=(variant,))
    run_sequence(sequence, execution, lambda line: None)
    states = read_requests(tmp_path, sequence.state_key(sequence.requests(), variant))
    assert [state["evaluated_request"] for state in states] == ["forget_1", "forget_2"]
    assert all(state["forget_rouge_l_recall"] < 1.0 for state in states)
    assert all(0.0 < state["partial_model_utility"] <= 1.0 for state in states)
