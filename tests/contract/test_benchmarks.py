"""What every benchmark must keep, new ones included."""

from dataclasses import fields
from typing import Any, get_args

import pytest

from bench.benchmarks import SPLITS, BenchmarkConfig, default_objectives
from bench.benchmarks.items import Benchmark
from bench.results.columns import SCORES


@pytest.fixture(params=get_args(BenchmarkConfig), ids=lambda kind: kind.name)
def loaded(request: pytest.FixtureRequest) -> Benchmark:
    """Each benchmark, with its data from beside this checkout where it ships none."""
    local: dict[str, Any] = {}
    if "data_dir" in {field.name for field in fields(request.param)}:
        local["data_dir"] = str(request.getfixturevalue(f"{request.param.name}_dir"))
    return request.param(**local).load()


def test_forget_and_retain_share_no_item(loaded: Benchmark) -> None:
    assert loaded.forget_set
    assert loaded.retain_set
    assert not {item.pair for item in loaded.forget_set} & {item.pair for item in loaded.retain_set}


def test_every_evaluated_item_can_be_scored(loaded: Benchmark) -> None:
    """TOFU's splits by wrong answers, multiple choice by the wrong letters, texts by what is generated."""
    assert set(loaded.evaluation) <= set(loaded.config.splits)
    for split, items in loaded.evaluation.items():
        for item in items:
            assert item.form in ("passage", "whole") or item.question.strip()
            assert item.answer.strip()
            assert len(item.perturbed_answers) >= (3 if SPLITS[split].kind in ("question", "choice") else 0)
            assert item.is_asked == (SPLITS[split].kind not in ("choice", "whole"))
            assert len(set(item.perturbed_answers)) == len(item.perturbed_answers) or loaded.config.name == "tofu"
        paraphrased = {item.paraphrased_answer is not None for item in items}
        assert len(paraphrased) == 1, f"{split}: all items of a split are scored alike"


def test_evaluated_items_are_those_trained_on(loaded: Benchmark) -> None:
    """The forget split is the forget set; retain items are known to target and retain model alike."""
    forget_set, retain_set = ([item.pair for item in items] for items in (loaded.forget_set, loaded.retain_set))
    for name in {"forget", "forget_verbatim"} & set(loaded.evaluation):
        assert [item.pair for item in loaded.evaluation[name]] == forget_set
    for name in {"retain", "retain_verbatim"} & set(loaded.evaluation):
        assert {item.pair for item in loaded.evaluation[name]} <= set(retain_set)
    knowledge = {item.pair for item in loaded.knowledge_set}
    for name, items in loaded.evaluation.items():
        if SPLITS[name].among_answers or SPLITS[name].kind == "choice" or name.endswith(("_knowledge", "_knowmem")):
            assert {item.pair for item in items} <= knowledge


def test_holdout_items_are_trained_on_by_no_model(loaded: Benchmark) -> None:
    trained = {item.pair for items in (loaded.forget_set, loaded.retain_set, loaded.knowledge_set) for item in items}
    for name in {"holdout", "holdout_verbatim", "holdout_whole"} & set(loaded.evaluation):
        assert not {item.pair for item in loaded.evaluation[name]} & trained


def test_wrong_answers_are_wrong(loaded: Benchmark) -> None:
    for items in loaded.evaluation.values():
        for item in items:
            if loaded.config.name == "tofu":
                continue  # TOFU's own data has a few wrong answers that repeat the right one
            assert item.answer not in item.perturbed_answers
            assert item.paraphrased_answer not in item.perturbed_answers


@pytest.mark.parametrize("kind", get_args(BenchmarkConfig), ids=lambda kind: kind.name)
def test_what_it_declares(kind: Any) -> None:
    """A split's name means the same everywhere; objectives and headlines are scores, objectives of a better way."""
    for name, split in kind.splits.items():
        assert SPLITS[name] == split
        assert split.strangers is None or kind.splits[split.strangers].role == "stranger"
    assert set(kind.headlines) <= set(SCORES)
    names = default_objectives(kind.name, kind.forget_split)
    assert all(SCORES[name].better for name in names)
