"""LoRA behind a gate, from config to rows: shut prompts have the base model's, at each threshold, of each request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.config import RunConfig, overlay, run_config
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import evaluate
from bench.results import store
from bench.results.requests import read_requests
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.run import run
from bench.runs.subject import Subject
from bench.sequential.request import RequestSequence, Variant
from bench.sequential.run import run_sequence
from grun.adapters.grun import set_gate_threshold
from grun.engine.edited import EditedModel
from grun.model.forward import PlainModel
from grun.sequential import combine

GATED_LORA = {
    "adapter": "gated_lora",
    "adapter.learning_rate": 0.003,
    "forget_loss": "idk",
    "training.num_epochs": 20,
}


def _same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Word for word, and to a thousandth."""
    for row, other in zip(rows, others, strict=True):
        assert (row["split"], row["item_index"]) == (other["split"], other["item_index"])
        assert row["generation"] == other["generation"]
        assert row["answer_nll"] == pytest.approx(other["answer_nll"], rel=1e-3, abs=1e-3)
        assert row["gate"] == pytest.approx(other["gate"], rel=1e-3, abs=1e-3)


def test_thresholds_share_one_evaluation(small_config: RunConfig, small_results: Path) -> None:
    """At each the rows are those of a model asked anew; where the gate is shut they are the base model's own."""
    config = run_config(overlay(small_config.to_dict(), GATED_LORA | {"adapter.gate_function": "mlp_3"}))
    execution = Execution(results=small_results)
    rows = run(config, execution, gate_thresholds=(0.0, 1.0))
    assert [row["gate_threshold"] for row in rows] == [0.5, 0.0, 1.0]
    assert rows[0]["forget_rouge_l_recall"] < 0.5 < 0.9 < rows[0]["retain_rouge_l_recall"]
    assert rows[0]["gate_auc"] > 0.95
    target = store.read_items(small_results, prerequisite(config, "target_model").run_key)
    assert target is not None
    base = {(row["split"], row["item_index"]): row for row in target}
    subject = Subject(config=config, execution=execution)
    adapted = subject.loaded(subject.module)
    for row in rows:
        items = store.read_items(small_results, row["run_key"])
        assert items is not None
        for item in items:
            if item["gate"][0] < row["gate_threshold"]:
                own = base[item["split"], item["item_index"]]
                assert {**item, "gate": None, "run_key": None} == {**own, "gate": None, "run_key": None}
        assert isinstance(adapted, EditedModel)
        set_gate_threshold(adapted, row["gate_threshold"])
        asking = Asking(adapted=adapted, template=subject.template, config=config.evaluation, decode_all=True)
        _same(items, evaluate(asking, subject.benchmark.evaluation))


def test_a_lora_a_request(small_config: RunConfig, tmp_path: Path) -> None:
    """Two requests behind one router: the last state as it would be measured; a request's own questions are forgotten,
    and answered again word for word once its module is gone, the other's answers as if it had never been."""
    authors = {"num_authors": 6, "forget_split": "forget50", "num_similar_authors": 1}
    settings = GATED_LORA | {"evaluation.max_items_per_split": 12}
    settings |= {"model.fine_tuning.num_epochs": 25, "model.fine_tuning.learning_rate": 0.006}  # as test_sequential's
    settings |= {f"benchmark.{name}": value for name, value in authors.items()}
    config = run_config(overlay(small_config.to_dict(), settings))
    sequence = RequestSequence(
        study="s",
        config=config,
        num_requests=2,
        extra_requests=(),
        variants=(Variant(combination="top_1", gate_threshold=0.5),),
    )
    execution = Execution(results=tmp_path)
    run_sequence(sequence, execution, lambda line: None)
    requests, subject = sequence.requests(), Subject(config=config, execution=execution)
    last = read_requests(location(tmp_path), sequence.state_key(requests, sequence.variants[0]))
    assert [row["forget_rouge_l_recall"] < 0.6 for row in last] == [True, True]
    assert last[0]["retain_rouge_l_recall"] > 0.9
    assert [share > 0.9 for share in last[0]["open_shares"]] == [True, False]
    modules = {}
    for request in requests:
        module = subject.loaded(location(tmp_path) / "modules" / sequence.module_key(request))
        assert isinstance(module, EditedModel)
        modules[request.name] = module
    first, second = (request.name for request in requests)
    both = combine(modules[first], modules, "top_1", 0.5)
    asking = Asking(adapted=both, template=subject.template, config=config.evaluation, decode_all=True)
    stored = store.read_items(tmp_path, last[0]["run_key"])
    assert stored is not None
    _same(stored, evaluate(asking, subject.benchmark.evaluation))
    prompts = [item.example(subject.template).prompt_ids for request in requests for item in request.items]
    untouched = PlainModel(subject.model).generate(prompts, 40).answers
    alone = combine(modules[first], {second: modules[second]}, "top_1", 0.5).generate(prompts, 40).answers
    own = len(requests[0].items)
    assert alone[:own] == untouched[:own]
    assert alone[own:] == both.generate(prompts, 40).answers[own:] != untouched[own:]
