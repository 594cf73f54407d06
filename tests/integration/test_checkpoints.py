"""A training cut off in the middle goes on where it was, and what is damaged is done again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import RunConfig, overlay, run_config
from bench.results import store
from bench.results.storage import Location, location
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.adapters.grun import GrunConfig
from grun.errors import UserError
from grun.training.checkpoints import Checkpoints
from grun.unlearned import load


class _CutOff(BaseException):
    """Not an error of the run's own: no failed row is written for it."""


@pytest.fixture(scope="module")
def config(small_config: RunConfig) -> RunConfig:
    """Six epochs of three steps, with a retain loss whose weight is learned on the way."""
    changes = {"training.batch_size": 4, "training.num_epochs": 6, "retain_loss": "pdu"}
    return run_config(overlay(small_config.to_dict(), changes))


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


@pytest.mark.parametrize(
    ("changes", "goes_on_with"),
    [({}, 10), ({"training.against_relearning.steps": 4}, 7)],
    ids=["alone", "under attack, anew after six steps"],
)
def test_training_goes_on_after_the_last_epoch(
    changes: dict[str, Any],
    goes_on_with: int,
    config: RunConfig,
    small_prerequisites: Path,
    tmp_path: Path,
    checkpoint_always: None,
    assert_same_metrics: Any,
) -> None:
    """Cut off in step 11 of 18, it goes on after the last whole epoch; row and losses are the uncut run's."""
    config = run_config(overlay(config.to_dict(), changes))
    for name in ("cut", "whole"):
        shutil.copytree(small_prerequisites, tmp_path / name)
    assert _steps(config, tmp_path / "cut", stop_after=11) == (list(range(1, 12)), None)
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    steps, row = _steps(config, tmp_path / "cut")
    assert steps == list(range(goes_on_with, 19))
    whole_steps, whole = _steps(config, tmp_path / "whole")
    assert whole_steps == list(range(1, 19))
    assert row is not None
    assert whole is not None
    assert_same_metrics(row, whole)
    assert row["num_steps"] == whole["num_steps"] == 18
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())
    (cut_losses,), (losses,) = (store.scan_losses(tmp_path / name).to_dicts() for name in ("cut", "whole"))
    assert cut_losses == losses, "those of the steps before the cut are kept in the checkpoint"
    assert losses["train_key"] == row["train_key"]
    assert [len(losses[part]) for part in ("total", "forget", "retain", "gate")] == [18] * 4


@pytest.mark.parametrize("damage", ["truncated", "garbage", "of another module", "both of them"])
def test_a_damaged_checkpoint_is_said_and_done_without(
    damage: str,
    config: RunConfig,
    small_results: Path,
    checkpoint_always: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cut off in step 8 of 18, there are those of steps 3 and 6; without the last, training goes on with step 4."""
    _steps(config, small_results, stop_after=8)
    (own,) = (small_results / "checkpoints").iterdir()
    first, last = own / "0-0", own / "1-0"
    weights = last / "0.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "garbage":
        (last / "trained.json").write_bytes(b"x" * 1000)
    elif damage == "both of them":
        for checkpoint in (first, last):
            (checkpoint / "0.safetensors").unlink()
    else:
        other = run_config(overlay(config.to_dict(), {"adapter.rank": 2}))
        _steps(other, small_results, stop_after=8)
        (elsewhere,) = set((small_results / "checkpoints").iterdir()) - {own}
        shutil.rmtree(last)
        (elsewhere / "1-0").replace(last)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        steps, row = _steps(config, small_results)
    assert steps == list(range(1 if damage == "both of them" else 4, 19))
    assert row is not None
    said = f"{last}: is damaged, and kept as {last}.damaged-1; "
    if damage == "both of them":
        said += f"{first}: is damaged, and kept as {first}.damaged-1; training starts over"
    else:
        said += "training goes on after step 3"
    assert [record.getMessage() for record in caplog.records] == [said]


def _cut_short(module: Path) -> None:
    weights = module / "edits.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])


def _lost(module: Path) -> None:
    (module / "edits.safetensors").unlink()


def _of_another_rank(module: Path) -> None:
    described = module / "adapter.json"
    described.write_text(described.read_text().replace('"rank": 4', '"rank": 2'))


@pytest.fixture(scope="module")
def whole(
    config: RunConfig, small_prerequisites: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A results folder whose module is whole and whose row is lost, and the row."""
    folder = Path(shutil.copytree(small_prerequisites, tmp_path_factory.mktemp("whole") / "results"))
    _, row = _steps(config, folder)
    assert row is not None
    (folder / "runs" / f"{row['run_key']}.parquet").unlink()
    return folder, row


@pytest.mark.parametrize("damage", [_cut_short, _lost, _of_another_rank])
def test_a_damaged_module_is_set_aside_and_trained_again(
    damage: Callable[[Path], None],
    whole: tuple[Path, dict[str, Any]],
    config: RunConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    assert_same_metrics: Any,
) -> None:
    """The same command makes it anew; what was damaged is kept beside it, as it was found."""
    folder, row = Path(shutil.copytree(whole[0], tmp_path / "r")), whole[1]
    module = folder / "modules" / row["train_key"]
    damage(module)
    found = {file.name: file.read_bytes() for file in module.iterdir()}
    with caplog.at_level(logging.WARNING):
        steps, again = _steps(config, folder)
    assert steps == list(range(1, 19))
    assert "is damaged, and kept as" in caplog.text
    assert again is not None
    assert_same_metrics(again, row)
    aside = module.with_name(f"{module.name}.damaged-1")
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == found


@pytest.mark.parametrize("damage", [_cut_short, _lost, _of_another_rank])
def test_a_damaged_module_is_one_line_from_python_too(
    damage: Callable[[Path], None], whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    module = Path(shutil.copytree(whole[0] / "modules" / whole[1]["train_key"], tmp_path / "m"))
    damage(module)
    with pytest.raises(UserError, match=r"/m: cannot be loaded as adapter.json describes it \(") as error:
        load(module)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_module_that_cannot_be_read_now_is_left_alone(
    error: Exception,
    whole: tuple[Path, dict[str, Any]],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_metrics: Any,
) -> None:
    """A disk that hesitates, a GPU that is full: the run fails with just that, and the next one finds the module."""
    folder, row = Path(shutil.copytree(whole[0], tmp_path / "r")), whole[1]

    def load(*arguments: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(GrunConfig, "load", load)
        with pytest.raises(type(error)):
            run(config, Execution(results=folder))
    assert [module.name for module in (folder / "modules").iterdir()] == [row["train_key"]]
    steps, again = _steps(config, folder)
    assert steps == [], "nothing is trained"
    assert again is not None
    assert_same_metrics(again, row)


def test_a_checkpoint_that_cannot_be_read_now_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting over would write over it."""

    (tmp_path / "0-0").mkdir()
    (tmp_path / "0-0" / "trained.json").write_text("{}")

    def fail(self: Location) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Location, "read", fail)
    parameter = torch.nn.Parameter(torch.zeros(1))
    checkpoints = Checkpoints(location(tmp_path), log=print)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.load([parameter], torch.optim.AdamW([parameter]))
    assert [file.name for file in tmp_path.iterdir()] == ["0-0"]
