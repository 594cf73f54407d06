"""MUSE's scores on two made-up corpora: text given word for word, questions about it, membership."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks.corpora import CorporaConfig
from bench.cli.main import main
from bench.config import overlay, run_config
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from grun.errors import UserError


def test_muse_scores(corpora_dir: Path, tmp_path: Path, capsys: Any) -> None:
    """The target gives text and answers word for word and is seen to; the retain model only what it was taught."""
    config = run_config(
        overlay(
            {},
            {
                "benchmark": "corpora",
                "benchmark.data_dir": str(corpora_dir),
                "model.num_layers": 4,
                "model.hidden_size": 64,
                "model.vocab_size": 400,
                "model.fine_tuning.num_epochs": 120,
                "model.fine_tuning.batch_size": 8,
                "adapter": "grun",
                "adapter.layers": [1, 3],
                "adapter.learning_rate": 0.02,
                "training.num_epochs": 60,
            },
        )
    )
    execution = Execution(results=tmp_path)
    rows = {row["method"]: row for row in run_prerequisites(config, execution)}
    target, retain_model = rows["target_model"], rows["retain_model"]
    assert target["forget_verbatim_rouge_l_f1"] > 0.9
    assert target["forget_knowledge_rouge_l_f1"] > 0.9
    assert target["mia_loss_auc"] > 0.9
    assert target["privleak"] < -50
    assert retain_model["forget_verbatim_rouge_l_f1"] < target["forget_verbatim_rouge_l_f1"] - 0.1
    assert retain_model["retain_verbatim_rouge_l_f1"] > 0.9
    assert retain_model["forget_knowledge_rouge_l_f1"] < 0.9  # nobody told it what is to be forgotten
    assert retain_model["privleak"] == 0.0
    (row,) = run(config, execution)
    assert row["forget_verbatim_rouge_l_f1"] < target["forget_verbatim_rouge_l_f1"]
    assert row["model_utility"] is row["forget_quality"] is None
    main(["pareto", str(tmp_path), "--format", "json"])
    objectives = json.loads(capsys.readouterr().out)["objectives"]
    assert objectives == {"forget_verbatim_rouge_l_f1": "min", "retain_verbatim_rouge_l_f1": "max"}


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmark\.data_dir: .*forget\.json cannot be read"):
        CorporaConfig(data_dir=str(tmp_path)).load()
