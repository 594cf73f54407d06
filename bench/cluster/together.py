"""Work of several workers: Ray Train starts them, each does its part, and what they die of is begun again."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from bench.cluster.connect import connected, possible_resources
from bench.progress import Progress, now_and_then, quiet
from grun.errors import UserError
from grun.workers import Workers

if TYPE_CHECKING:
    from bench.runs.execution import Execution

ATTEMPTS = 3
"""How often work is begun whose workers die; an error of its own ends it at once."""
PATIENCE_SECONDS = 24 * 3600
"""Workers wait so long for one of them: for the first while it writes, or while another command makes the same model.
One that died is known of at once."""
logger = logging.getLogger(__name__)


class WorkersDied(RuntimeError):
    """Again and again."""


def together(work: Callable[..., Any], execution: Execution, progress: Progress) -> Any:
    """What the first of `execution.num_workers` workers returns of `work(execution=…, workers=…, progress=…)`.

    work: is handed the execution of a single worker. Raises what a worker raised, or WorkersDied.
    """
    attempt = 1
    with connected(logger.warning), _heard(progress) as told:
        _check_fits(execution)
        alone = replace(execution, num_workers=1, ray_train="auto")
        part = {"work": partial(work, execution=alone), "sharded": execution.shard, "told": told}
        while True:
            try:
                return _fit(part, execution)
            except TrainingFailedError as error:
                own = own_error(error)
                if own is None and attempt < ATTEMPTS:
                    logger.warning("a worker died; what it did goes on from the last checkpoint")
                    attempt += 1
                    continue
                raise own or WorkersDied(f"workers died {ATTEMPTS} times") from error


@contextmanager
def _heard(progress: Progress) -> Iterator[Queue | None]:
    """What is put into it, in any process, is told to `progress` here; None where that shows nothing."""
    if progress is quiet:
        yield None
        return
    told = Queue(actor_options={"num_cpus": 0})

    def listen() -> None:
        while (what := told.get()) is not None:
            progress(*what)

    with ThreadPoolExecutor(max_workers=1) as pool:
        listening = pool.submit(listen)
        try:
            yield told
        finally:
            told.put(None)
            listening.result()
            told.shutdown()


def _fit(part: dict[str, Any], execution: Execution) -> Any:
    """What the first worker returns."""
    gpus = execution.gpus_per_worker or 0.0
    scaling = ScalingConfig(
        num_workers=execution.num_workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": execution.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
    )
    torch_config = TorchConfig(backend="nccl" if gpus >= 1 else "gloo", timeout_s=PATIENCE_SECONDS)
    # Bound to the work, which the controller only passes on: as `train_loop_config` it would import the models to read
    # it. The folder is for Ray's own notes: our checkpoints are in the results.
    train = partial(_in_a_worker, part)
    with tempfile.TemporaryDirectory(prefix="grun-bench-train-", ignore_cleanup_errors=True) as scratch:
        notes = ray.train.RunConfig(name=f"train-{uuid.uuid4().hex}", storage_path=scratch)
        trainer = TorchTrainer(train, scaling_config=scaling, torch_config=torch_config, run_config=notes)
        return trainer.fit().return_value


def _in_a_worker(part: dict[str, Any]) -> Any:
    context, told = ray.train.get_context(), part["told"]
    workers = Workers(rank=context.get_world_rank(), size=context.get_world_size(), sharded=part["sharded"])
    progress: Progress = quiet
    if told is not None and workers.is_first:
        progress = now_and_then(lambda *what: told.put(what), 1.0, ends=True)
    done = part["work"](workers=workers, progress=progress)
    ray.train.report({})
    return done


def own_error(error: TrainingFailedError) -> Exception | None:
    """What the work itself raised in a worker; None where one died: the others then miss it, and say so."""
    if not isinstance(error, WorkerGroupError):
        return error
    failures = list(error.worker_failures.values())
    mine = [failure for failure in failures if isinstance(failure, UserError)]
    has_died = any(type(failure).__module__.startswith("ray.") for failure in failures)
    return mine[0] if mine else None if has_died else failures[0]


def _check_fits(execution: Execution) -> None:
    """Raises UserError where the workers can never all run at once: Ray would wait for ever."""
    there, number = possible_resources(), execution.num_workers
    for kind, each in (("CPU", execution.cpus_per_worker), ("GPU", execution.gpus_per_worker or 0.0)):
        wanted, have = each * number, there.get(kind, 0.0)
        if wanted > have:
            problem = f"{number} of {each:g} {kind}s need {wanted:g}, and there are {have:g}; use fewer"
            raise UserError("--num-workers", problem)
