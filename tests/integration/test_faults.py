"""Faults for real: workers and nodes killed, a writer killed in mid-write, a full disk, two sweeps at once."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from bench.cli.main import main
from bench.results import store
from bench.studies.journal import study_storage

TIMEOUT_S = 240
BENCH = str(Path(sys.executable).with_name("grun-bench"))


def _start(log: Path, ray_address: str, *words: object) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own, on the cluster."""
    with log.open("w") as out:
        return subprocess.Popen(
            [BENCH, "sweep", *map(str, words)],
            stdout=out,
            stderr=out,
            env=os.environ | {"RAY_ADDRESS": ray_address},
            start_new_session=True,
        )


def _sweep(*words: object) -> None:
    """A sweep in this process, on the cluster."""
    main(["sweep", *map(str, words)])


@contextlib.contextmanager
def _meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """`action` in a thread beside what is done in the block; it must have come to its end, too."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        done = pool.submit(action)
        yield
        done.result()


def _until(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    """What it gives once it gives something; as long as `process` lives."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process is None or process.poll() is None, "it ended"
        time.sleep(0.1)
    raise AssertionError(f"not within {TIMEOUT_S} s")


def _modules(folder: Path) -> int:
    return len(list((folder / "modules").glob("[!.]*"))) if (folder / "modules").is_dir() else 0


def _trial_workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "ImplicitFunc" in _title(child)]


def _title(process: psutil.Process) -> str:
    """Ray names a worker after what it runs. Empty for one that has just ended (a zombie has no command line)."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_killed_workers_are_replaced(space: Any, small_results: Path, check_whole: Any, ray_address: str) -> None:
    """kill -9 of whatever is training, twice: Tune starts another worker, and no row is missing or double."""
    killed: list[int] = []

    def kill_twice() -> None:
        for finished in (1, 2):
            _until(lambda enough=finished: _modules(small_results) >= enough)  # type: ignore[misc]
            time.sleep(finished - 1.0)  # while it is evaluated, then into the next training
            for worker in _until(_trial_workers):
                worker.kill()
                killed.append(worker.pid)

    with _meanwhile(kill_twice):
        _sweep(space("workers", 3), "--results", small_results, "--num-concurrent", 1)
    check_whole(small_results, "workers", 3)
    assert len(set(killed)) >= 2


def test_a_killed_node_is_done_without(
    ray_cluster: Any, space: Any, small_results: Path, check_whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the cluster dies while both halves train; the other half does it all."""
    node = ray_cluster.add_node(num_cpus=2)

    def lose_the_node() -> None:
        _until(lambda: _modules(small_results) >= 1)
        ray_cluster.remove_node(node, allow_graceful=False)

    with _meanwhile(lose_the_node):
        _sweep(space("nodes", 2), "--results", small_results, "--cpus-per-worker", 2, "--num-threads", 1)
    assert "2 at a time" in capsys.readouterr().out
    check_whole(small_results, "nodes", 2)


WRITE_FOR_EVER = """
import sys
from datetime import UTC, datetime
from bench.results import store

item = {"split": "forget", "item_index": 0, "question": "q" * 1000, "answer": "a", "wrong_nll": [1.0] * 1000}
number = 0
while True:
    row = {"run_key": f"{sys.argv[2]}-{number}", "status": "ok", "created_at": datetime.now(UTC)}
    store.write_run(sys.argv[1], row, [item] * 50)
    print(row["run_key"], flush=True)
    number += 1
"""


def test_a_writer_killed_in_mid_write_leaves_whole_rows(tmp_path: Path) -> None:
    """Ten writers killed at random moments: every row that was said to be written is there with its items."""
    store.create(tmp_path)
    draw = random.Random(0)
    said: list[str] = []
    for writer in range(10):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), str(writer)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said.append(process.stdout.readline().strip())
        time.sleep(draw.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split()
        process.wait()
    assert store.damaged_files(tmp_path) == []
    runs = set(store.scan_runs(tmp_path)["run_key"])
    assert set(said) <= runs
    for key in runs:
        items = store.read_items(tmp_path, key)
        assert items is not None
        assert len(items) == 50


def test_a_full_disk_stops_a_sweep_in_one_line(
    small_disk: Path,
    fill_disk: Callable[[Path], None],
    small_prerequisites: Path,
    space: Any,
    check_whole: Any,
    without_ray: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With space again, the same command goes on to the end; what was finished is not done twice."""
    ballast = small_disk / "ballast"
    folder = Path(shutil.copytree(small_prerequisites, small_disk / "r"))
    words = (space("disk", 3, num_epochs=10), "--results", folder, "--num-concurrent", 1)

    def fill() -> None:
        _until(lambda: _modules(folder) >= 1)
        fill_disk(ballast)

    with pytest.raises(SystemExit) as stopped, _meanwhile(fill):
        _sweep(*words)
    assert stopped.value.code == 2
    said = capfd.readouterr()
    assert said.err.startswith("grun-bench: --results: No space left on device; free some")
    assert "Traceback" not in said.out + said.err
    ballast.unlink()
    before = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.parquet")}
    _sweep(*words)
    after = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.parquet")}
    assert before.items() <= after.items()
    check_whole(folder, "disk", 3)


def test_ctrl_c_ends_one_of_two_sweeps_that_share_a_folder(
    space: Any,
    small_results: Path,
    check_whole: Any,
    ray_address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a terminal sends it, to every process: the line that `train` has, then the same command goes on to the end.

    Before, another on the study that is running is refused at once; after, one on another study finishes beside it.
    """
    log, shared = tmp_path / "log", ("--results", small_results, "--num-concurrent", 1)
    words = (space("one", 2, num_epochs=10), *shared)
    first = _start(log, ray_address, *words)
    _until(lambda: (small_results / ".sweep-one.lock").exists(), first)
    with pytest.raises(SystemExit) as third:
        _sweep(*words)
    assert third.value.code == 2
    said = "".join(capsys.readouterr())
    own = [line for line in said.splitlines() if line and "(raylet)" not in line and line[0] != "\t"]
    assert own == [
        "grun-bench: study: one is being run by another sweep; wait for it"
    ]  # Ray tells of nodes lost before
    _until(lambda: _modules(small_results) >= 1, first)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(TIMEOUT_S) == 130, log.read_text()
    last = log.read_text().strip().splitlines()[-1]
    assert last == "grun-bench: interrupted; what was finished is kept, the same command goes on"
    assert "Traceback" not in log.read_text()
    before = {file: file.stat().st_mtime_ns for file in (small_results / "runs").glob("*.parquet")}
    again = _start(log, ray_address, *words)
    _sweep(space("two", 2, num_epochs=10), *shared)
    assert again.wait(TIMEOUT_S) == 0, log.read_text()
    after = {file: file.stat().st_mtime_ns for file in (small_results / "runs").glob("*.parquet")}
    assert before.items() <= after.items()
    for study in ("one", "two"):
        check_whole(small_results, study, 2)


def test_a_journal_that_ends_in_half_a_line_can_be_read_on(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=study_storage(tmp_path))
    study.ask()
    with (tmp_path / "studies.journal").open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    again = optuna.load_study(study_name="s", storage=study_storage(tmp_path))
    assert len(again.trials) == 1
    again.ask()
    assert len(optuna.load_study(study_name="s", storage=study_storage(tmp_path)).trials) == 2
