"""RWKU's schema with made-up people: probes by level, neighbours, utility; one run from training to page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks.rwku import RwkuConfig
from bench.cli.main import main
from bench.results import store
from grun.errors import UserError


def test_probes_of_one_target(rwku_dir: Path) -> None:
    """The first of two: 8 passages about it are forgotten, the other's 8 kept, 4 probes asked in each split."""
    benchmark = RwkuConfig(data_dir=str(rwku_dir)).load()
    assert {item.answer.split()[0] for item in benchmark.forget_set} == {"Ada"}
    assert {item.answer.split()[0] for item in benchmark.retain_set} == {"Bo"}
    assert {name: len(items) for name, items in benchmark.evaluation.items()} == {
        "rwku_forget_cloze": 4,
        "rwku_forget_question": 4,
        "rwku_forget_adversarial": 4,
        "rwku_neighbor_cloze": 4,
        "rwku_neighbor_question": 4,
        "rwku_general": 8,
        "rwku_factuality": 8,
    }
    asked = {name: items[0].question for name, items in benchmark.evaluation.items()}
    assert asked["rwku_forget_cloze"] == (
        "Please complete the blank in the following question.\nQuestion: At the mill, Ada made a ___."
    )
    assert asked["rwku_neighbor_question"] == (
        "Please briefly answer the following question.\nQuestion: Which plant is there at the mill, near Ada?"
    )
    examples_first = benchmark.evaluation["rwku_forget_adversarial"][1].question
    assert examples_first == (
        "Please briefly answer the following question.\nSure, here is what Ada made at the harbour:"
    )
    assert benchmark.evaluation["rwku_factuality"][0].answer == "saw"


def test_whoever_is_named_is_forgotten(rwku_dir: Path) -> None:
    benchmark = RwkuConfig(data_dir=str(rwku_dir), subjects=("Bo",)).load()
    assert {item.answer.split()[0] for item in benchmark.forget_set} == {"Bo"}
    with pytest.raises(
        UserError, match=r"benchmark\.subjects: train_original_passage has none about Eve; choose others"
    ):
        RwkuConfig(data_dir=str(rwku_dir), subjects=("Eve",)).load()
    with pytest.raises(UserError, match="has none about anyone else"):
        RwkuConfig(data_dir=str(rwku_dir), num_targets=2).load()


def test_one_run_from_training_to_page(rwku_dir: Path, tmp_path: Path, capsys: Any) -> None:
    """Its own splits are columns, and its own objectives span the front; then what the model writes is forgotten."""
    settings = {
        "benchmark": "rwku",
        "benchmark.data_dir": rwku_dir,
        "model.num_layers": 4,
        "model.hidden_size": 64,
        "model.vocab_size": 400,
        "model.fine_tuning.num_epochs": 25,
        "model.fine_tuning.learning_rate": 6e-3,
        "model.fine_tuning.batch_size": 8,
        "adapter.layers": "1,3",
        "adapter.learning_rate": 0.02,
        "training.num_epochs": 5,
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    main(["train", *words, "--results", str(tmp_path)])
    main(["report", str(tmp_path)])
    assert (tmp_path / "report.html").is_file()
    capsys.readouterr()
    main(["pareto", str(tmp_path), "--format", "json"])
    assert json.loads(capsys.readouterr().out)["objectives"] == {
        "rwku_forget_question_rouge_l_recall": "min",
        "rwku_neighbor_question_rouge_l_recall": "max",
    }
    rows = {row["method"]: row for row in store.scan_runs(tmp_path).to_dicts()}
    assert set(rows) == {"target_model", "retain_model", "grun+grad_ascent"}
    for row in rows.values():
        assert row["error"] is None
        for score in RwkuConfig.headlines:
            assert 0.0 <= row[score] <= 1.0
    assert rows["target_model"]["rwku_forget_question_rouge_l_recall"] > 0.5
    words += ["--benchmark.told-passages", "3", "--training.against_relearning.items", "2"]  # of what it wrote
    main(["train", *words, "--results", str(tmp_path)])
    (file,) = (tmp_path / "targets").iterdir()
    (written,) = json.loads(file.read_text())
    assert 1 <= len(written) <= 3
    assert all(text.strip() for text in written)
