"""Several workers are one worker: the same losses and the same scores, on gloo, with and without Ray Train."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from safetensors.torch import load_file

from bench.cli.main import main
from bench.cluster import together as ray_train
from bench.cluster.together import own_error
from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.results import store
from bench.runs import training
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from bench.runs.subject import Subject
from grun.errors import UserError
from grun.workers import ALONE

METHODS: dict[str, dict[str, Any]] = {
    "grun": {"forget_loss": "npo", "evaluation.robustness": {"relearn_items": 4, "relearn_steps": 2}},
    "lora": {"adapter": "lora", "adapter.dropout": 0.0, "adapter.learning_rate": 3e-3, "forget_loss": "altpo"},
    "full": {"adapter": "full", "adapter.learning_rate": 1e-3, "retain_loss": "kl"},
}
"""Losses by sequences and by tokens, with and without a reference, one with texts of the model's own."""
QUICK = {"training.batch_size": 4, "training.num_epochs": 2, "evaluation.max_items_per_split": 7}
"""10 forget items in steps of 4, and 7 of them asked: uneven parts."""
EXECUTIONS: dict[str, dict[str, Any]] = {
    "grun": {},
    "lora": {"accumulation_steps": 2, "gradient_checkpointing": True},
    "full": {"shard": True},
}


def _config(small_config: RunConfig, name: str) -> RunConfig:
    return run_config(overlay(small_config.to_dict(), QUICK | METHODS[name]))


WORK = """
import contextlib, json, sys
from pathlib import Path
import torch, torch.distributed as dist
from bench.config import run_config
from bench.runs.execution import Execution
from bench.results import store
from bench.runs.related import prerequisites
from bench.runs.worker import work
from grun.training import checkpoints
from grun.workers import Workers

class CutOff(BaseException):
    pass

def cut_off(phase, done, total):
    if phase.startswith("unlearn, loss") and done == 5:
        raise CutOff

checkpoints.EVERY_SECONDS = checkpoints.SPARED = 0.0
rank, meeting, folder, todo = json.loads(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
for config, execution in todo:
    config, execution = run_config(config), Execution(results=Path(folder), **execution)
    known = {each.start_from: store.read_items(folder, each.run_key) for each in prerequisites(config)}
    workers = Workers(rank=rank, size=2, sharded=execution.shard)
    if execution.shard:
        with contextlib.suppress(CutOff):
            work([config], execution, known, workers=workers, progress=cut_off)
        dist.barrier()
        left = Path(folder, "checkpoints", config.train_key)
        assert sorted(each.name for each in left.iterdir()) == ["0-0", "0-1"]
    work([config], execution, known, workers=workers)
dist.destroy_process_group()
"""
"""One of two processes: one run after another; a sharded one cut off in its second epoch of three steps, and on."""


@pytest.fixture(scope="module")
def references(small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with what every method is measured against."""
    folder = tmp_path_factory.mktemp("references") / "results"
    for name in ("grun", "lora"):
        run_prerequisites(_config(small_config, name), Execution(results=folder))
    return folder


@pytest.fixture
def results(references: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(references, tmp_path / "results"))


@pytest.fixture(scope="module")
def results_alone(references: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of one process."""
    return Path(shutil.copytree(references, tmp_path_factory.mktemp("alone") / "results"))


@pytest.fixture(scope="module")
def alone(small_config: RunConfig, results_alone: Path) -> dict[str, dict[str, Any]]:
    """Each method by one process."""
    return {name: run(_config(small_config, name), Execution(results=results_alone))[0] for name in METHODS}


@pytest.fixture(scope="module")
def together(small_config: RunConfig, references: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each method by two processes: the results folder."""
    folder = tmp_path_factory.mktemp("together")
    results = shutil.copytree(references, folder / "results")
    todo = [(_config(small_config, name).to_dict(), EXECUTIONS[name]) for name in METHODS]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, json.dumps([rank, str(folder / "meeting"), str(results), todo])],
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, complaints = process.communicate(timeout=540)
        assert process.returncode == 0, complaints.decode()
    return Path(results)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(
    name: str, alone: Any, together: Path, small_config: RunConfig, assert_same_metrics: Callable[..., None]
) -> None:
    """Global batch, items and seeds the same; the second worker's parts are smaller, and once it has none."""
    assert not list((together / "checkpoints").iterdir())
    row = store.read_run(together, _config(small_config, name).run_key)
    assert row is not None
    assert_same_metrics(row, alone[name])
    assert row["trainable_parameters"] == alone[name]["trainable_parameters"]


def test_sharded_weights_are_all_trained(
    alone: dict[str, dict[str, Any]], results_alone: Path, together: Path, target_folder: str
) -> None:
    """To what one process trains. The last norm stayed as it was where the reference model's pass came before."""
    file = Path("modules", alone["full"]["train_key"], "weights.safetensors")
    trained, expected = (load_file(folder / file) for folder in (together, results_alone))
    before = load_file(Path(target_folder) / "model.safetensors")
    assert trained.keys() == expected.keys()
    for name, weight in trained.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-5, msg=name)
        assert not torch.equal(weight, before[name]), name


def test_ray_train_gives_the_same_rows(
    alone: Any,
    small_config: RunConfig,
    ray_address: str,
    results: Path,
    tmp_path: Path,
    assert_same_metrics: Callable[..., None],
) -> None:
    """A trial of two workers in a sweep."""
    config = _config(small_config, "grun")
    choice = {"seed": {"type": "categorical", "choices": [config.seed]}}
    write_yaml(
        tmp_path / "one.yaml", {"study": "one", "base": config.to_dict(), "search_space": choice, "num_trials": 1}
    )
    main(["sweep", str(tmp_path / "one.yaml"), "--results", str(results), "--num-workers", "2"])
    row = store.read_run(results, config.run_key)
    assert row is not None
    assert_same_metrics(row, alone["grun"])


def test_one_worker_by_force_gives_the_same_row(
    alone: Any,
    small_config: RunConfig,
    without_ray: None,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_metrics: Callable[..., None],
) -> None:
    """What Ray Train is handed to start is done here: two are started for real above."""
    started: list[tuple[int, Any]] = []

    class Here:
        def __init__(self, work: Any, *, scaling_config: Any, **others: Any) -> None:
            self._work, self._scaling = work, scaling_config

        def fit(self) -> Any:
            started.append((self._scaling.num_workers, self._scaling.num_cpus_per_worker))
            return SimpleNamespace(return_value=self._work())

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray_train, "TorchTrainer", Here)
    monkeypatch.setattr(ray_train.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray_train.ray.train, "report", lambda metrics: None)
    config = _config(small_config, "grun")
    (forced,) = run(config, Execution(results=results, num_threads=1, ray_train="always"))
    assert started == [(1, 1)]
    assert_same_metrics(forced, alone["grun"])


def test_a_runs_own_error_is_raised_as_it_is() -> None:
    """Of what several workers say: what the user can mend, else what was raised; nothing where one died, in Ray's own
    words, for what the others say then is that they miss it."""
    mine, other, died = UserError("adapter.learning_rate", "diverged"), ValueError("x"), RayActorError()
    assert own_error(WorkerGroupError("", {0: other, 1: mine})) is mine
    assert own_error(WorkerGroupError("", {0: other, 1: ValueError("y")})) is other
    missed = RuntimeError("Connection reset by peer")
    for death in (died, WorkerHealthCheckFailedError("", died)):
        assert own_error(WorkerGroupError("", {0: missed, 1: death})) is None
        assert own_error(WorkerGroupError("", {0: death, 1: mine})) is mine
    another = TrainingFailedError("never began")
    assert own_error(another) is another


def test_too_many_workers_are_refused_at_once(small_config: RunConfig, ray_address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--num-workers: 4096 of 1 CPUs need 4096, and there are"):
        run(small_config, Execution(results=tmp_path, num_workers=4096))


@pytest.mark.parametrize("adapter", ["lora", "grun", "reft"])
def test_only_trained_weights_are_sharded(adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LoRA used to be attached twice, and GRUN to end in a traceback: now it is refused before anything is done."""
    words = ["--adapter", adapter, "--num-workers", "2", "--shard", "--results", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words])
    assert stopped.value.code == 2
    line = f"--shard: splits weights that are trained, and {adapter} trains none; leave it out"
    assert capsys.readouterr().err.strip() == f"grun-bench: {line}"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("key", "value"), [("robustness.quantize", "true"), ("after", "4_bit")])
def test_a_sharded_model_is_not_rounded(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be copied, which FSDP2 refuses: that was said behind the training, or never, and is said before."""
    words = ["--adapter", "full", "--num-workers", "2", "--shard", "--results", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words, f"--evaluation.{key}", value])
    assert stopped.value.code == 2
    line = "rounds a copy of the model, and one that is sharded cannot be copied; leave it out"
    assert capsys.readouterr().err.strip() == f"grun-bench: evaluation.{key}: {line}"
    assert not (tmp_path / "r").exists()


def test_one_worker_has_nothing_to_shard(small_config: RunConfig, tmp_path: Path) -> None:
    """It used to die in torch.distributed, and to leave a failed row of the retain model."""
    config = run_config(overlay(small_config.to_dict(), {"adapter": "full"}))
    with pytest.raises(UserError, match="--shard: splits the weights over workers, and there is one"):
        run(config, Execution(results=tmp_path, shard=True))
    assert not list(tmp_path.iterdir())


def test_a_module_that_is_there_is_sharded_too(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated again, what fits no GPU whole must be split again; it used to stay whole, on the CPU."""
    config = run_config(overlay(small_config.to_dict(), {"adapter": "full", "training.num_epochs": 1}))
    alone = Subject(config=config, execution=Execution(results=tmp_path))
    training.train_or_load(alone, ALONE)
    split: list[Any] = []
    monkeypatch.setattr(training, "shard", lambda model, device, workers: split.append((model, str(device), workers)))
    again = Subject(config=config, execution=Execution(results=tmp_path, shard=True, device="cpu"))
    training.train_or_load(again, ALONE)
    assert split == [(again.model, "cpu", ALONE)]


def test_a_home_that_ray_cannot_write_is_named() -> None:
    """It keeps a token there, wherever our own cache may be."""
    command = "from bench.cluster.connect import connected\nwith connected(print): pass"
    there = os.environ | {"HOME": "/proc/nowhere"}
    done = subprocess.run([sys.executable, "-c", command], env=there, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("grun.errors.UserError: HOME: Ray cannot write /proc/nowhere"), done.stderr
