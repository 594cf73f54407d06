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


def _start(log: Path, *words: object, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("w") as out:
        return subprocess.Popen(
            [BENCH, "sweep", *map(str, words)],
            stdout=out,
            stderr=out,
            env=os.environ | environment,
            start_new_session=True,
        )


def _until(condition: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _finish(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.wait(TIMEOUT_S) == 0, log.read_text()
    return log.read_text()


def _modules(folder: Path) -> int:
    return len(list((folder / "modules").glob("[!.]*"))) if (folder / "modules").is_dir() else 0


def _trial_workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "ImplicitFunc" in _title(child)]


def _title(process: psutil.Process) -> str:
    """Ray names a worker after what it runs. Empty for one that has just ended (a zombie has no command line)."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_killed_workers_are_replaced(space: Any, small_results: Path, check_whole: Any, tmp_path: Path) -> None:
    """kill -9 of whatever is training, twice: Tune starts another worker, and no row is missing or double."""
    log, folder = tmp_path / "log", small_results
    sweep = _start(log, space("workers", 4), "--results", folder)
    for finished in (1, 2):
        _until(lambda enough=finished: _modules(folder) >= enough, sweep, log)  # type: ignore[misc]
        for worker in _until(lambda: _trial_workers(sweep), sweep, log):
            worker.kill()
    _finish(sweep, log)
    check_whole(folder, "workers", 4)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A head with one CPU and a node with another, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    from bench.cluster.connect import DRIVER

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {DRIVER: 10}})
    node = cluster.add_node(num_cpus=1)
    yield cluster, node
    ray.shutdown()
    cluster.shutdown()


def test_a_killed_node_is_done_without(
    two_nodes: Any, space: Any, small_results: Path, check_whole: Any, tmp_path: Path
) -> None:
    """Half of the cluster dies while both halves train; the other half does it all."""
    cluster, node = two_nodes
    log, folder = tmp_path / "log", small_results
    sweep = _start(log, space("nodes", 4), "--results", folder, RAY_ADDRESS=cluster.address)
    _until(lambda: _modules(folder) >= 1, sweep, log)
    assert "2 at a time" in log.read_text()
    cluster.remove_node(node, allow_graceful=False)
    _finish(sweep, log)
    check_whole(folder, "nodes", 4)


def test_a_cluster_that_nobody_named_is_left_alone(two_nodes: Any) -> None:
    """Ray would join the last one started on this machine; without $RAY_ADDRESS it is one of our own, of one node."""
    count_nodes = (
        "import ray; from bench.cluster.connect import connected\nwith connected(print): print(len(ray.nodes()))"
    )
    printed = subprocess.run([sys.executable, "-c", count_nodes], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["starting Ray", "1"]


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(file: Path) -> None:
    """Until not one more byte fits."""
    with file.open("wb", buffering=0) as out:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(b"x" * size)


def test_a_full_disk_stops_a_sweep_in_one_line(
    small_disk: Path, small_prerequisites: Path, space: Any, check_whole: Any, ray_address: str, tmp_path: Path
) -> None:
    """With space again, the same command goes on to the end; what was finished is not done twice."""
    log, ballast = tmp_path / "log", small_disk / "ballast"
    folder = Path(shutil.copytree(small_prerequisites, small_disk / "r"))
    words = (space("disk", 3, num_epochs=10), "--results", folder)
    sweep = _start(log, *words, "--num-concurrent", 1, RAY_ADDRESS=ray_address)
    _until(lambda: _modules(folder) >= 1, sweep, log)
    _fill(ballast)
    assert sweep.wait(TIMEOUT_S) == 2, log.read_text()
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith("grun-bench: --results: No space left on device; free some")
    assert "Traceback" not in log.read_text()
    ballast.unlink()
    before = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.parquet")}
    again = _start(log, *words, RAY_ADDRESS=ray_address)
    _finish(again, log)
    after = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.parquet")}
    assert before.items() <= after.items()
    check_whole(folder, "disk", 3)


def test_ctrl_c_ends_a_sweep_with_130(
    space: Any, small_results: Path, check_whole: Any, ray_address: str, tmp_path: Path
) -> None:
    """As a terminal sends it, to every process: the line that `train` has, then the same command goes on to the end."""
    log = tmp_path / "log"
    words = (space("broken-off", 2, num_epochs=10), "--results", small_results)
    sweep = _start(log, *words, "--num-concurrent", 1, RAY_ADDRESS=ray_address)
    _until(lambda: _modules(small_results) >= 1, sweep, log)
    os.killpg(sweep.pid, signal.SIGINT)
    assert sweep.wait(TIMEOUT_S) == 130, log.read_text()
    last = log.read_text().strip().splitlines()[-1]
    assert last == "grun-bench: interrupted; what was finished is kept, the same command goes on"
    assert "Traceback" not in log.read_text()
    before = {file: file.stat().st_mtime_ns for file in (small_results / "runs").glob("*.parquet")}
    _finish(_start(log, *words, RAY_ADDRESS=ray_address), log)
    after = {file: file.stat().st_mtime_ns for file in (small_results / "runs").glob("*.parquet")}
    assert before.items() <= after.items()
    check_whole(small_results, "broken-off", 2)


def test_two_sweeps_share_a_folder_but_not_a_study(
    space: Any,
    small_results: Path,
    check_whole: Any,
    ray_address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Side by side they finish each its own study; a third on a study that is running is refused at once."""
    folder = small_results
    logs = [tmp_path / f"log{number}" for number in range(2)]
    first = _start(logs[0], space("one", 2), "--results", folder, "--num-concurrent", 1, RAY_ADDRESS=ray_address)
    _until(lambda: (folder / ".sweep-one.lock").exists(), first, logs[0])
    second = _start(logs[1], space("two", 2), "--results", folder, "--num-concurrent", 1, RAY_ADDRESS=ray_address)
    with pytest.raises(SystemExit) as third:
        main(["sweep", str(space("one", 2)), "--results", str(folder)])
    assert third.value.code == 2
    said = "".join(capsys.readouterr())
    assert said.strip() == "grun-bench: study: one is being run by another sweep; wait for it"
    for process, log in ((first, logs[0]), (second, logs[1])):
        _finish(process, log)
    for study in ("one", "two"):
        check_whole(folder, study, 2)


def test_a_journal_that_ends_in_half_a_line_can_be_read_on(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=study_storage(tmp_path))
    study.ask()
    with (tmp_path / "studies.journal").open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    again = optuna.load_study(study_name="s", storage=study_storage(tmp_path))
    assert len(again.trials) == 1
    again.ask()
    assert len(optuna.load_study(study_name="s", storage=study_storage(tmp_path)).trials) == 2
