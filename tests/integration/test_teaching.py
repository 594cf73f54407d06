"""Target and retain models are fine-tuned once, by any number of workers, and go on where they were cut off."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bench.benchmarks.items import Benchmark
from bench.cluster import together as ray_train
from bench.config import RunConfig, overlay, run_config
from bench.models import prepare, sharing
from bench.models.cache import made_once
from bench.models.prepare import paced, prepared_model
from bench.progress import Progress
from bench.results.storage import Location, location
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.subject import Subject
from grun.data import epoch_batches
from grun.errors import UserError
from grun.model.forward import PlainModel
from grun.training import checkpoints
from grun.training.checkpoints import Checkpoints, Trained
from grun.training.teach import FineTuningConfig, Lessons, fine_tune
from grun.workers import Workers

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

        def progress(phase: str, done: int, total: int) -> None:
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
        return Path(prepared_model(config.model, small_benchmark, "target_model"))


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


KILLED = """
import json, os, signal, sys
from bench.config import run_config
from bench.models.prepare import paced, prepared_model
from grun.training import checkpoints

def progress(phase, done, total):
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


def test_another_node_goes_on_with_what_one_left(
    whole: Path, teach_in: Callable[..., Any], checkpoint_always: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is taken away in step 8: the next finds the checkpoint where models are shared, and shares the model."""
    monkeypatch.setenv("GRUN_BENCH_SHARED", str(tmp_path / "shared"))
    with pytest.raises(InterruptedError):
        teach_in(tmp_path / "one", lambda step: _raise(InterruptedError) if step == 8 else None)
    made, steps = teach_in(tmp_path / "two")
    assert steps == list(range(8, STEPS + 1))
    assert _files(made) == _files(whole)
    assert _names(tmp_path / "shared" / "models") == [whole.name, f"{whole.name}.lock"]


ASKED = ("What is dew?", "Why do cats purr?", "Who was the first to sail around the world?")

TOGETHER = (
    f"ASKED = {ASKED!r}"
    + """
import dataclasses, json, os, shutil, sys
import torch, torch.distributed as dist
from bench.config import overlay, run_config
from bench.models.prepare import Means, prepared_model
from grun.training import checkpoints
from grun.workers import Workers

class CutOff(BaseException):
    pass

def taught(cache, sharded, stop_at=None, **means):
    os.environ["GRUN_BENCH_CACHE"] = f"{folder}/{cache}"
    steps = []

    def progress(phase, done, total):
        steps.append(done)
        if done == stop_at:
            raise CutOff

    means = Means(workers=Workers(rank=rank, size=2, sharded=sharded), **means)
    try:
        prepared_model(config.model, benchmark, "target_model", progress, means)
    except CutOff:
        pass
    return steps

rank, folder, settings = json.loads(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
checkpoints.EVERY_SECONDS = checkpoints.SPARED = 0.0
config = run_config(settings)
benchmark = config.benchmark.load()
steps = [taught("copies", False, accumulation_steps=2, gradient_checkpointing=True), taught("shards", True, stop_at=8)]
if rank == 0:
    shutil.copytree(f"{folder}/shards", f"{folder}/alone")
dist.barrier()
steps.append(taught("shards", True))
unasked, benchmark = benchmark, dataclasses.replace(benchmark, replay_prompts=ASKED)
taught("kept", True, accumulation_steps=2)
config, benchmark = run_config(overlay(settings, {"model.fine_tuning.dtype": "bfloat16"})), unasked
taught("half", True)
print(json.dumps(steps))
dist.destroy_process_group()
"""
)
"""One of two processes: a model taught by copies of it, one by shards of it, cut off in step 8, and on from there."""


@pytest.fixture(scope="module")
def together(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[list[int]]]]:
    """The folder with the caches of what two processes teach, and the steps that each of them did."""
    folder = tmp_path_factory.mktemp("together")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, json.dumps([rank, str(folder), config.to_dict()])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return folder, [json.loads(out) for out, _ in said]


@pytest.mark.parametrize("how", ["copies", "shards"])
def test_two_workers_teach_as_one(how: str, together: Any, whole: Path) -> None:
    """The same global batch, dealt out: the same files, weights to float rounding, and no checkpoint left."""
    folder, steps = together
    every = list(range(1, STEPS + 1))
    assert steps == [[every, every[:8], every[7:]]] * 2
    models = folder / how / "models"
    assert _names(models) == [whole.name, f"{whole.name}.lock"]
    _assert_same_weights(models / whole.name, whole)
    assert _names(models / whole.name) == _names(whole)
    others = set(_names(whole)) - {"model.safetensors"}
    assert {name: (models / whole.name / name).read_bytes() for name in others} == {
        name: (whole / name).read_bytes() for name in others
    }


def test_workers_keep_what_was_said_as_one_does(together: Any, small_benchmark: Benchmark, config: RunConfig) -> None:
    """Beside what is taught, in shards and several passes: the weights of one worker."""
    made, benchmark = together[0] / "kept" / "models", replace(small_benchmark, replay_prompts=ASKED)
    (lock,) = made.glob("*.lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRUN_BENCH_CACHE", str(together[0] / "kept alone"))
        alone = Path(prepared_model(config.model, benchmark, "target_model"))
    assert alone.name == lock.stem
    _assert_same_weights(lock.with_suffix(""), alone)


def test_weights_are_kept_in_the_dtype_that_was_chosen(together: Any, whole: Path) -> None:
    """Sharded, trained in float32 and rounded at the end: half the bytes, within a 256th, as `from_pretrained` says."""
    (made,) = (together[0] / "half" / "models").glob("*.lock")
    model = AutoModelForCausalLM.from_pretrained(made.with_suffix(""))
    assert model.dtype == torch.bfloat16
    for name, weight in load_file(whole / "model.safetensors").items():
        own = model.state_dict()[name]
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), weight, rtol=1 / 256 + 1e-3, atol=1e-4, msg=name)


def test_a_killed_worker_of_ray_train_is_replaced_and_the_rest_goes_on(
    config: RunConfig, whole: Path, own_cache: Path, ray_address: str, tmp_path: Path
) -> None:
    """kill -9 of the second of two in step 8: both are begun again, after the last checkpoint of the first."""
    models = own_cache / "models"
    for left in models.glob(f"{whole.name}*"):  # of an earlier session
        shutil.rmtree(left, ignore_errors=True)
    started, settings, told = tmp_path / "started", config.to_json(), list[tuple[str, int, int]]()

    def work(execution: Execution, workers: Workers, progress: Progress) -> str:
        checkpoints.EVERY_SECONDS = checkpoints.SPARED = 0.0
        with started.open("a") as log:
            log.write(f"{workers.rank} ")

        def killing(phase: str, done: int, total: int) -> None:
            with (tmp_path / f"steps-{workers.rank}").open("a") as log:
                log.write(f"{done} ")
            progress(phase, done, total)
            if (workers.rank, done) == (1, 8) and len(started.read_text().split()) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        subject = Subject(config=taught, execution=execution, progress=killing, workers=workers)
        return subject.source

    taught = prerequisite(run_config(json.loads(settings)), "target_model")
    execution = Execution(results=tmp_path, num_workers=2, num_threads=1)
    assert ray_train.together(work, execution, lambda *what: told.append(what)) == str(models / whole.name)
    assert sorted(started.read_text().split()) == ["0", "0", "1", "1"]
    steps = [int(step) for step in (tmp_path / "steps-1").read_text().split()]
    assert steps in ([*range(1, 9), *range(first, STEPS + 1)] for first in (8, 9))
    assert re.fullmatch(r"prepare target_model, [\d,]+ tokens/s", told[-1][0])
    assert told[-1][1:] == (STEPS, STEPS)
    _assert_same_weights(models / whole.name, whole)
    assert not (models / f"{whole.name}.checkpoint").exists()


def test_one_worker_goes_on_with_what_two_had_sharded(
    together: Any, whole: Path, teach_in: Callable[..., Any], checkpoint_always: None, tmp_path: Path
) -> None:
    """The checkpoint in two parts, of a worker's seven steps, is put together; its losses were those of one worker."""
    with pytest.raises(InterruptedError):
        teach_in(tmp_path, lambda step: _raise(InterruptedError) if step == 8 else None)
    headers = [
        json.loads((cache / "models" / f"{whole.name}.checkpoint" / "0-0" / "trained.json").read_text())
        for cache in (tmp_path, together[0] / "alone")
    ]
    assert [header["parts"] for header in headers] == [1, 2]
    torch.testing.assert_close(*(torch.tensor(header["losses"]) for header in headers), rtol=1e-5, atol=1e-6)
    made, steps = teach_in(together[0] / "alone")
    assert steps == list(range(8, STEPS + 1))
    _assert_same_weights(made, whole)


def _raise(error: type[Exception]) -> None:
    raise error


def _assert_same_weights(made: Path, whole: Path) -> None:
    weights = load_file(made / "model.safetensors")
    expected = load_file(whole / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-5, msg=name)


def test_one_worker_teaches_as_the_plain_loop_does(whole: Path, config: RunConfig, monkeypatch: Any) -> None:
    """AdamW, its rate by torch's own scheduler, gradients clipped at 1: the same bits, without checkpoints."""
    seen: list[Any] = []
    monkeypatch.setattr(prepare, "fine_tune", lambda adapted, *others, **named: seen.append((adapted, others)))
    monkeypatch.setenv("GRUN_BENCH_CACHE", str(whole.parents[1] / "untaught"))
    prepared_model(config.model, config.benchmark.load(), "target_model")
    ((adapted, (lessons, recipe)),) = seen
    parameters = adapted.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, (0.9, 0.98), weight_decay=0.01, fused=True)
    # Up over 1.2 of 12 steps, which is in the second, then down to 0 after the last.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / 1.2 if done == 0 else _down(done))
    adapted.train(True)
    for rows in epoch_batches(len(lessons.taught), 16, 2, recipe.seed):
        optimizer.zero_grad()
        adapted.answer_output([lessons.taught[row] for row in rows]).scores.nll_N.mean().backward()
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
    kept = Checkpoints(location(tmp_path), log=said.append)

    def offered(number: int) -> None:
        parameter.grad = torch.ones(2)
        optimizer.step()
        kept.offer([parameter], optimizer, Trained(losses=[(0.5,)] * number, seconds=1.0))

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
        made_once(folder, partial(sharing._fetch_or_build, "m", build))

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
        fine_tune(PlainModel(model), Lessons(taught=examples), recipe)


def test_progress_says_tokens_a_second_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 100 and 300 tokens in 4 s after the first, which is where counting begins: 100 a second; 2 s a step,
    and 60 of them are left."""
    clock = iter([10.0, 11.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    said: list[Any] = []
    told = paced("prepare target_model", lambda *what: said.append(what))
    for done, tokens in ((5, 7), (6, 100), (7, 300)):
        told(done, 67, tokens)
    assert said[0] == ("prepare target_model", 5, 67)
    assert said[2] == ("prepare target_model, 100 tokens/s, 0:02:00 left", 7, 67)
