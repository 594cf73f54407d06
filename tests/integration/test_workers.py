"""Several workers are one worker: the same losses and the same scores, on gloo, with and without Ray Train."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import results
from bench.cli import main
from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.train import Execution, evaluate_references, run
from grun.errors import UserError

METHODS: dict[str, dict[str, Any]] = {
    "grun": {"forget_loss": "npo", "evaluation.robustness": {"relearn_items": 4, "relearn_steps": 2}},
    "lora": {"adapter": "lora", "adapter.dropout": 0.0, "adapter.learning_rate": 3e-3, "forget_loss": "idk"},
    "full": {"adapter": "full", "adapter.learning_rate": 1e-3, "retain_loss": "kl", "training.num_epochs": 2},
}
"""Losses by sequences and by tokens, with and without a reference; 10 forget items in steps of 4: uneven parts."""
EXECUTIONS: dict[str, dict[str, Any]] = {
    "grun": {},
    "lora": {"accumulation_steps": 2, "gradient_checkpointing": True},
    "full": {"shard": True},
}


def _config(small_config: RunConfig, name: str) -> RunConfig:
    return run_config(overlay(small_config.to_dict(), {"training.batch_size": 4, **METHODS[name]}))


WORK = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from bench.config import run_config
from bench.train import Execution, run_missing
from grun.workers import Workers

rank, meeting, folder, config, execution = json.loads(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
execution = Execution(results=Path(folder), **execution)
workers = Workers(rank=rank, size=2, sharded=execution.shard)
run_missing([run_config(config)], execution, study=None, workers=workers)
dist.destroy_process_group()
"""
"""One of two processes."""


@pytest.fixture(scope="module")
def alone(small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each method by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: run(_config(small_config, name), Execution(results=folder))[0] for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(
    name: str, alone: Any, small_config: RunConfig, tmp_path: Path, assert_same_metrics: Callable[..., None]
) -> None:
    """Global batch, items and seeds the same; the second worker's parts are smaller, and once it has none."""
    config = _config(small_config, name)
    results.create(tmp_path)
    evaluate_references(config, Execution(results=tmp_path))
    arguments = [str(tmp_path / "meeting"), str(tmp_path), config.to_dict(), EXECUTIONS[name]]
    processes = [
        subprocess.Popen([sys.executable, "-c", WORK, json.dumps([rank, *arguments])], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        _, complaints = process.communicate(timeout=180)
        assert process.returncode == 0, complaints.decode()
    row = results.read_run(tmp_path, config.run_key)
    assert row is not None
    assert_same_metrics(row, alone[name])
    assert row["trainable_parameters"] == alone[name]["trainable_parameters"]


def test_ray_train_gives_the_same_rows(
    alone: Any, small_config: RunConfig, tmp_path: Path, assert_same_metrics: Callable[..., None]
) -> None:
    """A trial of two workers in a sweep, and a run of one by force; an error of its own is raised as it is."""
    config = _config(small_config, "grun")
    evaluate_references(config, Execution(results=tmp_path))
    choice = {"seed": {"type": "categorical", "choices": [config.seed]}}
    write_yaml(
        tmp_path / "one.yaml", {"study": "one", "base": config.to_dict(), "search_space": choice, "num_trials": 1}
    )
    main(["sweep", str(tmp_path / "one.yaml"), "--results", str(tmp_path), "--num-workers", "2"])
    row = results.read_run(tmp_path, config.run_key)
    assert row is not None
    assert_same_metrics(row, alone["grun"])
    execution = Execution(results=tmp_path, num_threads=1)
    other = run_config(overlay(config.to_dict(), {"adapter": "full", "adapter.learning_rate": 1e30}))
    with pytest.raises(UserError, match=r"diverged|not finite"):
        run(other, replace(execution, ray_train="always"))
    assert results.scan_runs(tmp_path).filter(run_key=other.run_key)["status"].to_list() == ["failed"]


def test_too_many_workers_are_refused_at_once(small_config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--num-workers: 4096 of 1 CPUs need 4096, and there are"):
        run(small_config, Execution(results=tmp_path, num_workers=4096))
