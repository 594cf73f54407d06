"""The field's own numbers stay: scores of given rows to the last digit, and the rows themselves as far as CPUs agree.

`scores.json` holds rows of the small target, retain and an unlearned model on the generated authors, and every score
that was made of them. When a change is meant to move one, run `GOLDEN_UPDATE=1 pytest tests/golden` and say why in the
commit.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.config import RunConfig, overlay, run_config
from bench.evaluation.asking import Asking, EvaluationConfig
from bench.evaluation.evaluate import evaluate
from bench.evaluation.score import score
from bench.results.columns import item_row
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from bench.runs.training import plan_of
from grun.training.unlearn import unlearn

GOLDEN = Path(__file__).with_name("scores.json")
MODELS: dict[str, dict[str, Any]] = {
    "retain_model": {"adapter": "none", "start_from": "retain_model"},
    "target_model": {"adapter": "none"},
    "unlearned": {"adapter.gate_threshold": 0.5, "forget_loss": "idk", "training.num_epochs": 8},
}
GATE_THRESHOLD = 0.5
TOLERANCE = 0.08
"""By how much a number may be off, of itself or, below 1, as it stands: twice what AVX2 and AVX-512 make of the same
trainings. What is said of all tokens together, improbable ones too, is off by three times as much."""
SPREAD = ("token_mean_log_p", "token_std_log_p")
EVALUATION = EvaluationConfig(max_items_per_split=4, max_new_tokens=24)
Rows = list[dict[str, Any]]


def scores_of(rows: dict[str, Rows]) -> dict[str, dict[str, float]]:
    """Each model's scores, measured against the retain model."""
    whole = {name: [item_row(**row) for row in some] for name, some in rows.items()}
    return {name: score(some, whole["retain_model"], GATE_THRESHOLD) for name, some in whole.items()}


def test_scores_of_given_rows_stay() -> None:
    """To the last digit: numpy's exp differs between kinds of CPU in that digit (by 3e-16), and nothing else does."""
    golden = json.loads(GOLDEN.read_text())
    for name, found in scores_of(golden["rows"]).items():
        assert found == pytest.approx(golden["scores"][name], rel=1e-15, abs=0.0), name
        field = ("forget_probability", "forget_rouge_l_recall", "forget_truth_ratio", "forget_quality", "model_utility")
        assert found.keys() >= set(field)


def test_rows_stay(small_config: RunConfig, tmp_path: Path) -> None:
    """What they say word for word, every count, every first choice; numbers to TOLERANCE."""
    found = {name: rows_of(small_config, changes, tmp_path / name) for name, changes in MODELS.items()}
    if os.environ.get("GOLDEN_UPDATE"):
        GOLDEN.write_text(json.dumps({"rows": found, "scores": scores_of(found)}) + "\n")
    golden = json.loads(GOLDEN.read_text())["rows"]
    for name, rows in found.items():
        assert len(rows) == len(golden[name])
        for row, wanted in zip(rows, golden[name], strict=True):
            assert row.keys() == wanted.keys()
            for column, value in row.items():
                numbers = "nll" in column or column in ("gate", *SPREAD)
                off = TOLERANCE * (3 if column in SPREAD else 1)
                assert value == (pytest.approx(wanted[column], rel=off, abs=off) if numbers else wanted[column])


def rows_of(small_config: RunConfig, changes: dict[str, Any], folder: Path) -> Rows:
    """A model's rows, their numbers to seven digits, without what is empty."""
    config = run_config(overlay(small_config.to_dict(), changes))
    subject = Subject(config=config, execution=Execution(results=folder, engine="plain"))
    planned = plan_of(config, subject, subject.benchmark) if config.adapter.trains else None
    adapted = subject.attached()
    if planned is not None:
        unlearn(adapted, planned[0], config.recipe, planned[1])
    adapted.train(False)
    asking = Asking(adapted=adapted, template=subject.template, config=EVALUATION)
    rows = evaluate(asking, subject.benchmark.evaluation)
    return [{name: rounded(value) for name, value in row.items() if value not in (None, [])} for row in rows]


def rounded(value: Any) -> Any:
    """Numbers to seven digits."""
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value
