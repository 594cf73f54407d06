"""Sweeps for real, on Ray: budgets, thresholds, failures, going on, kill -9."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import psutil
import pytest
from optuna.trial import TrialState

from bench.cli.main import main
from bench.config import overlay
from bench.files import write_yaml
from bench.results import store
from bench.studies.journal import study_storage
from bench.studies.search import FROM_THRESHOLD, INTERRUPTED

TIMEOUT_S = 240


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory, small_config: Any) -> Path:
    """A GRUN space that searches thresholds, and a full fine-tuning one whose first point diverges."""
    folder = tmp_path_factory.mktemp("spaces")
    rate = {"type": "float", "low": 0.005, "high": 0.02, "log": True}
    grun = {
        "study": "grun",
        "base": small_config.to_dict(),
        "search_space": {
            "adapter.gate_threshold": {"type": "float", "low": 0.0, "high": 0.9},
            "adapter.learning_rate": rate,
        },
        "gate_thresholds": [0.0, 0.5],
        "num_trials": 2,
    }
    full = {
        "study": "full",
        "base": overlay(small_config.to_dict(), {"adapter": "full", "training.num_epochs": 1}),
        "search_space": {"adapter.learning_rate": {**rate, "high": 1e30}},
        "initial_points": [{"adapter.learning_rate": 1e30}, {"adapter.learning_rate": 0.005}],
        "num_trials": 2,
    }
    slow = {**grun, "study": "slow", "base": overlay(grun["base"], {"training.num_epochs": 60}), "num_trials": 2}
    for name, space in (("grun", grun), ("full", full), ("slow", slow)):
        write_yaml(folder / f"{name}.yaml", space)
    return folder


def _here(*words: object) -> str:
    """The command line in this process, whose workers are those of the cluster: what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([str(word) for word in words])
    return printed.getvalue()


def _trials(folder: Path, study: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage=study_storage(folder)).trials


def _unlearned(folder: Path) -> pl.DataFrame:
    return store.scan_runs(folder).filter(pl.col("adapter") != "none")


@pytest.fixture(scope="module")
def swept(
    spaces: Path, small_prerequisites: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Both spaces in one command."""
    folder = Path(shutil.copytree(small_prerequisites, tmp_path_factory.mktemp("swept") / "results"))
    return folder, _here(
        "sweep", spaces / "grun.yaml", spaces / "full.yaml", "--results", folder, "--num-concurrent", 1
    )


def test_every_training_is_a_line_and_every_evaluation_a_row(swept: tuple[Path, str]) -> None:
    folder, printed = swept
    assert "[4/4" in printed
    assert "failed: adapter.learning_rate: training left a model whose likelihoods are not finite" in printed
    rows = _unlearned(folder)
    assert rows.filter(pl.col("study") == "full")["status"].sort().to_list() == ["failed", "ok"]
    grun = rows.filter(pl.col("study") == "grun")
    assert grun.height == 6, "two modules at three thresholds each"
    assert grun["train_key"].n_unique() == 2
    assert grun["run_key"].n_unique() == 6
    assert len(list((folder / "modules").iterdir())) == 2, "full fine-tuning's weights are not kept"
    for row in rows.filter(pl.col("status") == "ok").to_dicts():
        assert store.read_items(folder, row["run_key"]) is not None


def test_optuna_learns_from_every_threshold(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    trials = _trials(folder, "grun")
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 6}
    assert sum(FROM_THRESHOLD in trial.user_attrs for trial in trials) == 4
    by_key = {row["run_key"]: row for row in _unlearned(folder).to_dicts()}
    for trial in trials:
        row = by_key[trial.user_attrs["run_key"]]
        assert trial.values == [row["log10_forget_quality"], row["model_utility"]]
        assert trial.params["adapter.gate_threshold"] == row["gate_threshold"]
    states = [trial.state for trial in _trials(folder, "full")]
    assert sorted(states) == [TrialState.COMPLETE, TrialState.FAIL]


def test_the_same_command_goes_on(swept: tuple[Path, str], spaces: Path, without_ray: None) -> None:
    """A used budget leaves nothing to do; a larger one is made up for, and what is there stays as it is."""
    folder, _ = swept
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    printed = _here("sweep", spaces / "grun.yaml", "--results", folder)
    assert "2 of 2 trainings are done already" in printed
    assert "nothing to do" in printed
    _here("sweep", spaces / "grun.yaml", "--results", folder, "--num-trials", 3, "--num-concurrent", 1)
    after = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    assert before.items() <= after.items()
    assert _unlearned(folder).filter(pl.col("study") == "grun")["train_key"].n_unique() == 3
    rates = [trial.params["adapter.learning_rate"] for trial in _trials(folder, "grun")]
    assert len(set(rates)) == 3, "the sampler did not repeat its first draws"


def test_other_objectives_are_refused(
    swept: tuple[Path, str], spaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = swept
    text = (spaces / "grun.yaml").read_text() + "objectives: {forget_rouge_l_recall: min, model_utility: max}\n"
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        _here("sweep", tmp_path / "other.yaml", "--results", folder)
    assert stop.value.code == 2
    assert "study grun was begun with others" in capsys.readouterr().err


def test_an_error_in_a_target_model_is_one_line(
    spaces: Path, ray_address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Raised in a worker, where Ray wraps it in the worker's traceback: the user sees the error itself."""
    data = ["--benchmark", "questions", "--benchmark.data_dir", tmp_path]
    with pytest.raises(SystemExit) as stop:
        _here("sweep", spaces / "grun.yaml", "--results", tmp_path / "r", *data, "--cpus-per-worker", 2)
    assert stop.value.code == 2
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert said.startswith(f"grun-bench: benchmark.data_dir: {tmp_path}/forget.json")


def test_kill_loses_nothing_finished(spaces: Path, small_results: Path, ray_address: str, tmp_path: Path) -> None:
    """kill -9 of the driver and its Ray in the middle; the same command then finishes, each row once.

    Its Ray is one of its own: nobody named the cluster that is there, though Ray would join the last one started here.
    """
    log = (tmp_path / "log").open("w")
    words = ["sweep", str(spaces / "slow.yaml"), "--results", str(small_results), "--num-concurrent", "1"]
    command = [str(Path(sys.executable).with_name("grun-bench")), *words]
    driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    rows_folder = small_results / "runs"
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        finished = list(rows_folder.glob("*.parquet")) if rows_folder.is_dir() else []
        if len(finished) >= 5:  # target, retain model, and one module at three thresholds
            break
        assert driver.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.2)
    own = [child.name() for child in psutil.Process(driver.pid).children()]
    assert "starting Ray" in (tmp_path / "log").read_text()
    assert "gcs_server" in own, "the head of a cluster"
    time.sleep(1.0)  # into the second training
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {file: file.stat().st_mtime_ns for file in (small_results).rglob("*.parquet")}
    assert 5 <= len([file for file in before if file.parent.name == "runs"]) < 8, "it was killed in the middle"
    cut_off = [trial for trial in _trials(small_results, "slow") if trial.state == TrialState.RUNNING]

    printed = _here(*words)
    after = {file: file.stat().st_mtime_ns for file in (small_results).rglob("*.parquet")}
    assert before.items() <= after.items(), printed
    trials = _trials(small_results, "slow")
    counted = [t for t in trials if FROM_THRESHOLD not in t.user_attrs and INTERRUPTED not in t.user_attrs]
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 2
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    rows = _unlearned(small_results)
    assert rows["run_key"].n_unique() == rows.height == 6
    assert cut_off
    for trial in cut_off:
        again = trials[trial.number]
        assert (again.state, again.params) == (TrialState.COMPLETE, trial.params), "what was cut off was done again"


def test_the_best_of_each_method_with_other_seeds(swept: tuple[Path, str], without_ray: None, tmp_path: Path) -> None:
    """Two seeds a method, apart from the sweep's own rows, attacks on; the table has a line for each method."""
    folder, _ = swept
    before = _unlearned(folder).height
    table = tmp_path / "table.md"
    _here("seeds", folder, "--num-seeds", 2, "--output", table, "--num-concurrent", 1)
    again = _unlearned(folder / "seeds")
    assert sorted(again.select("method", "seed").rows()) == [
        (method, seed) for method in ("full+grad_ascent", "grun+grad_ascent") for seed in (0, 1)
    ]
    assert again["forget_relearned_rouge_l_recall"].null_count() == 0
    assert _unlearned(folder).height == before
    lines = table.read_text().splitlines()
    assert lines[1] == f"grun-bench seeds {folder} --num-seeds 2 --best rouge_l --utility-kept 0.95"
    assert {line.split(" | ")[0].strip("| ") for line in lines[6:]} == {
        "target_model",
        "retain_model",
        "full+grad_ascent",
        "grun+grad_ascent",
    }
    assert " ± " in lines[-1]
