"""Work handed to the cluster, which says meanwhile how far it is."""

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

    def __init__(self, execution: Execution, log: Log) -> None:
        """execution: how each task works. log: gets the tasks' lines while they are waited for."""
        self._log = log
        self._lines = Queue(actor_options={"num_cpus": 0})
        asked = resources_of(execution)
        self._remote = ray.remote(
            num_cpus=asked.pop("CPU", 0), num_gpus=asked.pop("GPU", 0), resources=asked, max_retries=3
        )
        self._tasks: list[Any] = []

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        """`work(*arguments, say)` in a process of its own; what `say` is given is shown here."""
        self._tasks.append(self._remote(work).remote(*arguments, self._lines.put))

    def wait(self) -> list[Any]:
        """Until all are done; returns what each returned, in the order they were added. Raises what a task raised."""
        tasks, self._tasks = self._tasks, []
        pending = tasks
        while pending:
            _, pending = ray.wait(pending, timeout=2)
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
