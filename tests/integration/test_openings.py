"""A gate threshold chosen by false openings: from config to rows, on disk and back, of several requests together."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bench.benchmarks.keeping import NO_SET
from bench.cli.tables import threshold
from bench.config import RunConfig, overlay, run_config
from bench.results import store
from bench.results.requests import last_states, read_requests, scan_requests, write_choice
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.runs.run import run
from bench.runs.subject import Subject
from bench.sequential.deployment import export
from bench.sequential.request import RequestSequence, Variant
from bench.sequential.run import run_sequence
from bench.studies.rescore import rescore
from grun.adapters.grun import GrunConfig
from grun.engine.edited import EditedModel
from grun.gates import openings
from grun.unlearned import load

RATE = 0.05


@pytest.fixture
def config(small_config: RunConfig) -> RunConfig:
    """What takes no training, and forgets."""
    settings = {"adapter": "eco", "adapter.dims": 1.0, "adapter.max_false_openings": RATE}
    return run_config(overlay({k: v for k, v in small_config.to_dict().items() if k != "forget_loss"}, settings))


def _thresholds(adapted: object) -> set[float]:
    assert isinstance(adapted, EditedModel)
    return {float(edit.gate_threshold) for edit in adapted.edits.values()}


def test_it_is_chosen_kept_and_told(config: RunConfig, small_results: Path) -> None:
    """The row has threshold and share, its scores are those at it; the module has it, wherever it is loaded from."""
    execution = Execution(results=small_results)
    (row,) = run(config, execution)
    tau = row["gate_threshold"]
    assert 0.0 < tau != 0.5
    assert 0.0 <= row["false_openings"] <= RATE
    assert threshold(row) == f"{tau:.3f} ({row['false_openings']:.2%} open)"
    items = store.read_items(small_results, row["run_key"])
    assert items is not None
    opened = [item["gate"][0] >= tau for item in items if item["split"] == "forget"]
    assert row["forget_gate_open_share"] == sum(opened) / len(opened) > 0.5
    subject = Subject(config=config, execution=execution)
    adapted = subject.loaded(subject.module)
    assert _thresholds(adapted) == {tau}
    assert isinstance(adapted, EditedModel)
    gates = adapted.prompt_gates([subject.template.prompt_ids(question) for question in NO_SET])
    assert gates is not None
    assert row["no_set_openings"] == (gates.sigmoid() >= tau).sum().item() / 50 < row["forget_gate_open_share"]
    module = small_results / "modules" / config.train_key
    assert _thresholds(load(module, subject.model, subject.tokenizer).adapted) == {tau}
    (found,) = run(_in_other_batches(config), execution)  # evaluated anew, of the same module
    assert (found["gate_threshold"], found["false_openings"]) == (tau, row["false_openings"])
    rescore(small_results)
    again = store.read_run(location(small_results), row["run_key"])
    assert again is not None
    for name in ("gate_threshold", "false_openings", "forget_gate_open_share", "model_utility"):
        assert again[name] == row[name]


def _in_other_batches(config: RunConfig) -> RunConfig:
    """Another row of the same module."""
    return run_config(overlay(config.to_dict(), {"evaluation.batch_size": 8}))


def test_of_several_requests_it_is_chosen_for_all_together(
    config: RunConfig, small_results: Path, tmp_path: Path
) -> None:
    """Each state has its own, whatever it is they are one line of the table, and what is exported has the last one."""
    variant = Variant(combination="top_1", gate_threshold=None)
    sequence = RequestSequence(
        study="s", config=config, num_requests=1, extra_requests=("repeat",), variants=(variant,)
    )
    run_sequence(sequence, Execution(results=small_results), lambda line: None)
    write_choice(small_results, "s", config.to_json(), "top_1", None)
    requests = sequence.requests()
    states = [read_requests(location(small_results), sequence.state_key(requests[:n], variant))[0] for n in (1, 2)]
    assert all(0.0 <= state["false_openings"] <= RATE for state in states)
    assert all(state["gate_threshold"] > 0.0 for state in states)
    (last,) = last_states(scan_requests(small_results)).to_dicts()
    assert last["is_own_variant"]
    assert 0.0 <= last["no_set_openings"] < 0.5
    assert last["gate_threshold"] == states[1]["gate_threshold"]
    assert last["mean_train_seconds"] == pytest.approx(sum(state["train_seconds"] for state in states) / 2)
    export(small_results, "s", tmp_path / "out", ())
    assert _thresholds(load(tmp_path / "out").adapted) == {last["gate_threshold"]}
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"2 deletion requests of authors (forget20), by {config.method}." in card.text
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert scores["requested_rouge_l_recall"] == pytest.approx(last["requested_rouge_l_recall"])


def test_a_trained_gate_has_one_too(small_config: RunConfig, small_results: Path) -> None:
    """GRUN's own, three layers of them: no held-back prompt may open any; it forgets all the same."""
    config = run_config(overlay(small_config.to_dict(), {"adapter.max_false_openings": 0.0}))
    assert isinstance(config.adapter, GrunConfig)
    (row,) = run(config, Execution(results=small_results))
    assert row["false_openings"] == 0.0
    assert row["gate_threshold"] > 0.0
    assert row["forget_gate_open_share"] > 0.5
    assert row["forget_rouge_l_recall"] < 0.6


def test_prompts_in_no_set_are_read_once_and_by_the_engine(
    small_config: RunConfig, small_results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four thresholds of one module: one pass over the fifty prompts, and nothing that pyvene is imported for."""
    asked: list[int] = []
    most_open = openings._most_open
    monkeypatch.setattr(openings, "_most_open", lambda *given: asked.append(len(given[1])) or most_open(*given))
    monkeypatch.setattr(EditedModel, "_plain", lambda *given: pytest.fail("pyvene has no part in a run"))
    rows = run(small_config, Execution(results=small_results), gate_thresholds=(0.0, 0.3, 0.5, 0.6))
    assert asked == [len(NO_SET)]
    shares = {row["gate_threshold"]: row["no_set_openings"] for row in rows}
    assert len(rows) == len(shares) == 4
    assert shares[0.0] == shares[0.5] < 1.0, "none is quite shut there, and half open counts"
    assert shares[0.3] >= shares[0.5] >= shares[0.6]
