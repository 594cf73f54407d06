"""Target and retain models are fine-tuned once, by any number of workers, and go on where they were cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig, overlay, run_config
from bench.models import prepare
from bench.models.cache import made_once
from bench.models.prepare import prepared_model
from bench.results.storage import Location, location
from grun.data import epoch_batches
from grun.errors import UserError
from grun.model.forward import PlainModel
from grun.training.checkpoints import Checkpoints, Trained
from grun.training.teach import FineTuningConfig, fine_tune

STEPS = 12
"""Of the target model below: 90 items in batches of 16, twice."""


@pytest.fixture(scope="module")
def config(small_config: RunConfig) -> RunConfig:
    """A model that is taught in a second."""
    changes = {
        "model.num_layers": 2,
        "model.hidden_size": 32,
        "model.fine_tuning.num_epochs": 2,
        "model.fine_tuning.batch_size": 16,
    }
    return run_config(overlay(small_config.to_dict(), changes))


@pytest.fixture
def teach_in(
    config: RunConfig, small_benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, list[int]]]:
    """Gives (the target model as it is in a cache of its own, the steps that were done for it)."""

    def teach_in(cache: Path, at_step: Callable[[int], None] = lambda step: None) -> tuple[Path, list[int]]:
        monkeypatch.setenv("GRUN_BENCH_CACHE", str(cache))
        steps: list[int] = []

        def progress(done: int, total: int) -> None:
            assert total == STEPS
            steps.append(done)
            at_step(done)

        return Path(prepared_model(config.model, small_benchmark, "target_model", progress)), steps

    return teach_in


@pytest.fixture(scope="module")
def whole(config: RunConfig, small_benchmark: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that nobody cut off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRUN_BENCH_CACHE", str(tmp_path_factory.mktemp("whole")))
        return Path(prepared_model(config.model, small_benchmark, "target_model", lambda done, total: None))


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


KILLED = """
import json, os, signal, sys
from bench.config import run_config
from bench.models.prepare import prepared_model
from grun.training import checkpoints

def progress(done, total):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.EVERY_SECONDS = checkpoints.SPARED = 0.0
config = run_config(json.loads(sys.argv[1]))
prepared_model(config.model, config.benchmark.load(), "target_model", progress)
"""


def test_a_killed_fine_tuning_goes_on_to_the_same_bytes(
    config: RunConfig, whole: Path, teach_in: Callable[..., Any], tmp_path: Path
) -> None:
    """kill -9 in step 8 of 12; the checkpoint of step 7 is gone on from, and is gone with the one before at the end."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, config.to_json()],
        env=os.environ | {"GRUN_BENCH_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    left = tmp_path / "models" / f"{whole.name}.checkpoint"
    headers = {each.name: json.loads((each / "trained.json").read_text()) for each in left.iterdir()}
    assert {name: len(header["losses"]) for name, header in headers.items()} == {"0-0": 7, "1-0": 6}
    made, steps = teach_in(tmp_path)
    assert steps == list(range(8, STEPS + 1))
    assert _files(made) == _files(whole)
    assert _names(tmp_path / "models") == [whole.name, f"{whole.name}.lock"]


def test_one_worker_teaches_as_the_plain_loop_does(whole: Path, config: RunConfig, monkeypatch: Any) -> None:
    """AdamW, its rate by torch's own scheduler, gradients clipped at 1: the same bits, without checkpoints."""
    seen: list[Any] = []
    monkeypatch.setattr(prepare, "fine_tune", lambda adapted, *others, **named: seen.append((adapted, others)))
    monkeypatch.setenv("GRUN_BENCH_CACHE", str(whole.parents[1] / "untaught"))
    prepared_model(config.model, config.benchmark.load(), "target_model", lambda done, total: None)
    ((adapted, (examples, recipe)),) = seen
    parameters = adapted.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    # Up over 1.2 of 12 steps, which is in the second, then down to 0 after the last.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / 1.2 if done == 0 else _down(done))
    adapted.train(True)
    for rows in epoch_batches(len(examples), 16, 2, recipe.seed):
        optimizer.zero_grad()
        adapted.answer_output([examples[row] for row in rows]).scores.nll_N.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    there = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    for name, weight in adapted.model.state_dict().items():
        assert torch.equal(weight, there[name]), name


def _down(done: int) -> float:
    return min(1.0, (12 - done) / (12 - 0.1 * 12))


def test_a_full_disk_loses_no_step(
    small_disk: Path,
    fill_disk: Callable[[Path], None],
    whole: Path,
    teach_in: Callable[..., Any],
    checkpoint_always: None,
) -> None:
    """Full from step 9 on: checkpoints take turns in the room they have, the model finds none, and that is one line.

    With space again, the same call has nothing left to train.
    """
    ballast = small_disk / "ballast"
    with pytest.raises(UserError, match=r"^GRUN_BENCH_CACHE: no space is left in") as error:
        teach_in(small_disk / "cache", lambda step: fill_disk(ballast) if step == 9 else None)
    assert len(str(error.value).splitlines()) == 1
    assert _names(small_disk / "cache" / "models") == [f"{whole.name}.checkpoint", f"{whole.name}.lock"]
    ballast.unlink()
    made, steps = teach_in(small_disk / "cache")
    assert steps == []
    assert _files(made) == _files(whole)


def test_a_checkpoint_that_cannot_be_written_is_a_line_and_the_one_before_is_kept(
    tmp_path: Path, checkpoint_always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there after step 1 is found although neither step 2 nor step 3 could be written."""
    parameter, said = torch.nn.Parameter(torch.ones(2)), list[str]()
    optimizer = torch.optim.AdamW([parameter])
    checkpoints = Checkpoints(location(tmp_path), log=said.append)

    def offered(number: int) -> None:
        parameter.grad = torch.ones(2)
        optimizer.step()
        checkpoints.offer([parameter], optimizer, Trained(losses=[(0.5,)] * number, seconds=1.0))

    def full(self: Location, last: str) -> Any:
        raise OSError(28, "No space left on device")

    offered(1)
    after_one = parameter.detach().clone()
    with monkeypatch.context() as patch:
        patch.setattr(Location, "written_folder", full)
        offered(2)
        offered(3)
    line = "no checkpoint was written (No space left on device); training goes on, and the one before it is kept"
    assert said == [line] * 2
    found = Checkpoints(location(tmp_path), log=said.append).load([parameter], optimizer)
    assert found == Trained(losses=[[0.5]], seconds=1.0)
    assert torch.equal(parameter, after_one)
    assert said[2:] == ["training goes on after step 1"]


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_two_commands_at_once_make_one_model(num_nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first is at work: it waits, and finds on its node or copies what was made."""
    monkeypatch.setenv("GRUN_BENCH_SHARED", str(tmp_path / "shared"))
    folders = [tmp_path / f"node {number % num_nodes}" / "m" for number in range(2)]
    made: list[Path] = []
    second: list[Any] = []

    def build(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        if not second:
            second.append(pool.submit(prepared, folders[1]))
            assert not wait(second, timeout=0.5).done
        (folder / "config.json").write_text(f"made {len(made)}")

    def prepared(folder: Path) -> None:
        made_once(folder, partial(prepare._fetch_or_build, "m", build))

    with ThreadPoolExecutor(max_workers=1) as pool:
        prepared(folders[0])
        second[0].result()
    assert len(made) == 1
    assert [(folder / "config.json").read_text() for folder in folders] == ["made 1"] * 2


def test_a_fine_tuning_that_diverges_is_one_line(fresh_target: Callable[[], Any]) -> None:
    """It used to store a model of NaNs."""
    model, template = fresh_target()
    examples = [template.example("Who?", "Me."), template.example("What?", "That.")]
    recipe = replace(FineTuningConfig(), batch_size=1, learning_rate=1e30)
    line = r"^model\.fine_tuning\.learning_rate: training diverged at step \d; use a smaller one$"
    with pytest.raises(UserError, match=line):
        fine_tune(PlainModel(model), examples, recipe)
