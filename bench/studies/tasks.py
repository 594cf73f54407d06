"""Work handed to the cluster, which says meanwhile how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from bench.cluster.connect import DRIVER
from bench.runs.execution import Execution

Log = Callable[[str], None]
"""Gets a line for the user."""


class _Lines:
    """What workers have to say, until the driver shows it: an actor."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def post(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


class Tasks:
    """Tasks of one worker each; Ray queues what does not fit, and does again what a dead worker left."""

    def __init__(self, execution: Execution, log: Log) -> None:
        """execution: how each task works. log: gets the tasks' lines while they are waited for."""
        self._log = log
        self._lines = ray.remote(num_cpus=0)(_Lines).remote()
        asked = resources_of(execution)
        self._remote = ray.remote(
            num_cpus=asked.pop("CPU", 0), num_gpus=asked.pop("GPU", 0), resources=asked, max_retries=3
        )
        self._tasks: list[Any] = []

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        """`work(*arguments, say)` in a process of its own; what `say` is given is shown here."""
        self._tasks.append(self._remote(_task).remote(work, arguments, self._lines))

    def wait(self) -> list[Any]:
        """Until all are done; returns what each returned, in the order they were added. Raises what a task raised."""
        tasks, self._tasks = self._tasks, []
        pending = tasks
        while pending:
            _, pending = ray.wait(pending, timeout=2)
            self._show()
        try:
            return list(ray.get(tasks))
        except RayTaskError as error:  # with the worker's traceback as its text
            raise error.cause from None

    def _show(self) -> None:
        for line in ray.get(self._lines.take.remote()):
            self._log(line)


def resources_of(execution: Execution) -> dict[str, float]:
    """What the process of one run asks Ray for: workers of its own take theirs beside it."""
    if execution.uses_ray_train:
        return {DRIVER: 1.0}
    return {"CPU": float(execution.cpus_per_worker), "GPU": execution.gpus_per_worker}


def _task(work: Callable[..., Any], arguments: tuple[Any, ...], lines: Any) -> Any:
    """In a worker."""

    def say(line: str) -> None:
        ray.get(lines.post.remote(line))

    return work(*arguments, say)
