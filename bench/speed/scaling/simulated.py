"""Ray clusters of one-CPU nodes on this machine, a driver on them, and what it takes while it works."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.cluster.connect import ENVIRONMENT

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The driver (`driver`), the processes that run trials (`workers`) and Ray's other ones (`Ray`) at one moment."""

    seconds: float
    done: int
    """Trials so far, those of earlier drivers included."""
    cpu_s: Mapping[str, float]
    """Of all processes of a kind together."""
    megabytes: Mapping[str, Sequence[float]]
    """Of each process of a kind."""
    workers: Sequence[psutil.Process]


@contextmanager
def cluster(num_nodes: int) -> Iterator[str]:
    """Nodes of one CPU; yields the cluster's address."""
    from ray.cluster_utils import Cluster

    os.environ.update(ENVIRONMENT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(num_nodes - 1):
        cluster.add_node(num_cpus=1)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def start_driver(folder: Path, num_trials: int, at_once: int, seconds: float, address: str) -> subprocess.Popen[bytes]:
    """The sweep that is watched, in a process of its own; its lines go to FOLDER/log."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["no_op_sweep", num_trials, "--at-once", at_once, "--seconds", seconds, "--results", folder]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.speed.scaling", *map(str, words)],
            stdout=log,
            stderr=log,
            env=os.environ | {"RAY_ADDRESS": address},
        )


def watched(driver: subprocess.Popen[bytes], folder: Path) -> Iterator[Sample]:
    """A sample twice a second, until the driver ends."""
    while driver.poll() is None:
        cpu_s = {"driver": 0.0, "workers": 0.0, "Ray": 0.0}
        megabytes: dict[str, list[float]] = {who: [] for who in cpu_s}
        workers = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
                who = "driver" if process.pid == driver.pid else "workers" if _runs_trials(process) else "Ray"
                times = process.cpu_times()
                cpu_s[who] += times.user + times.system
                megabytes[who].append(process.memory_info().rss / MB)
                workers += [process] if who == "workers" else []
        done = (folder / "log").read_text().count("\n[")
        yield Sample(seconds=time.perf_counter(), done=done, cpu_s=cpu_s, megabytes=megabytes, workers=workers)
        time.sleep(0.5)


def _runs_trials(process: psutil.Process) -> bool:
    """Ray names a worker after the class of Tune's that holds a trial's function."""
    return "ImplicitFunc" in " ".join(process.cmdline())
