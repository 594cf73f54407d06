"""Work handed to the cluster, which says meanwhile how far it is."""

import sys
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.queue import Queue

from bench.cluster.connect import DRIVER
from bench.runs.execution import Execution

Log = Callable[[str], None]
"""Gets a line for the user."""


class Tasks:
    """Tasks of one worker each; Ray queues what does not fit, and does again what a dead worker left."""

    def __init__(self, execution: Execution, log: Log, at_once: int | None = None) -> None:
        """execution: how each task works. log: gets the tasks' lines while they are waited for. at_once: as many tasks
        at most; None: as many as fit."""
        self._log = log
        self._at_once = at_once or sys.maxsize
        self._lines = Queue(actor_options={"num_cpus": 0})
        asked = resources_of(execution)
        self._remote = ray.remote(
            num_cpus=asked.pop("CPU", 0), num_gpus=asked.pop("GPU", 0), resources=asked, max_retries=3
        )
        self._left: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        """`work(*arguments, say)` in a process of its own, as soon as it is waited for; `say` shows a line here."""
        self._left.append((work, arguments))

    def wait(self) -> list[Any]:
        """Until all are done; returns what each returned, in the order they were added. Raises what a task raised."""
        left, self._left = self._left, []
        tasks: list[Any] = []
        pending: list[Any] = []
        while pending or len(tasks) < len(left):
            begun = [
                self._remote(work).remote(*arguments, self._lines.put)
                for work, arguments in left[len(tasks) : len(tasks) + self._at_once - len(pending)]
            ]
            tasks += begun
            _, pending = ray.wait(pending + begun, timeout=2)
            for line in self._lines.get_nowait_batch(self._lines.qsize()):
                self._log(line)
        try:
            return list(ray.get(tasks))
        except RayTaskError as error:  # with the worker's traceback as its text
            raise error.cause from None


def resources_of(execution: Execution) -> dict[str, float]:
    """What the process of one run asks Ray for: workers of its own take theirs beside it."""
    if execution.uses_ray_train:
        return {DRIVER: 1.0}
    return {"CPU": float(execution.cpus_per_worker), "GPU": execution.gpus_per_worker or 0.0}
