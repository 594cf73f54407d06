"""A training cut off in the middle goes on where it was, and what is damaged is done again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from bench.config import RunConfig, overlay, run_config
from bench.runs import training
from bench.runs.execution import Execution
from bench.runs.run import run


class _CutOff(BaseException):
    """Not an error of the run's own: no failed row is written for it."""


@pytest.fixture
def config(small_config: RunConfig) -> RunConfig:
    """Six epochs of three steps."""
    return run_config(overlay(small_config.to_dict(), {"training.batch_size": 4, "training.num_epochs": 6}))


def _steps(config: RunConfig, folder: Path, stop_after: int | None = None) -> tuple[list[int], dict[str, Any] | None]:
    """Steps that were trained, and the row."""
    trained: list[int] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase.startswith("unlearn, loss"):
            trained.append(done)
            if done == stop_after:
                raise _CutOff

    try:
        return trained, run(config, Execution(results=folder), progress=progress)[0]
    except _CutOff:
        return trained, None


def test_training_goes_on_after_the_last_epoch(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_metrics: Any
) -> None:
    """Cut off in step 11 of 18, it goes on with step 10; the row is the uncut run's, and the checkpoint is gone."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    assert _steps(config, tmp_path / "cut", stop_after=11) == (list(range(1, 12)), None)
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    steps, row = _steps(config, tmp_path / "cut")
    assert steps == list(range(10, 19))
    whole_steps, whole = _steps(config, tmp_path / "whole")
    assert whole_steps == list(range(1, 19))
    assert row is not None
    assert whole is not None
    assert_same_metrics(row, whole)
    assert row["num_steps"] == whole["num_steps"] == 18
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "garbage", "of another module"])
def test_a_damaged_checkpoint_is_said_and_done_without(
    damage: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    _steps(config, tmp_path, stop_after=5)
    (file,) = (tmp_path / "checkpoints").iterdir()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "garbage":
        file.write_bytes(b"x" * 1000)
    else:
        other = run_config(overlay(config.to_dict(), {"adapter.rank": 2}))
        _steps(other, tmp_path, stop_after=5)
        (elsewhere,) = set((tmp_path / "checkpoints").iterdir()) - {file}
        elsewhere.replace(file)
    with caplog.at_level(logging.WARNING):
        steps, row = _steps(config, tmp_path)
    assert steps == list(range(1, 19))
    assert row is not None
    assert "is damaged" in caplog.text


def test_a_damaged_module_is_trained_again(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, assert_same_metrics: Any
) -> None:
    """Its row is lost and its weights are cut short: the same command makes both anew."""
    _, row = _steps(config, tmp_path)
    assert row is not None
    (tmp_path / "runs" / f"{row['run_key']}.parquet").unlink()
    weights = tmp_path / "modules" / row["train_key"] / "edits.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with caplog.at_level(logging.WARNING):
        steps, again = _steps(config, tmp_path)
    assert steps == list(range(1, 19))
    assert "is damaged" in caplog.text
    assert again is not None
    assert_same_metrics(again, row)
