"""One run on several workers: Ray Train starts them, each does its part, the first one writes."""

import logging
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray.train
from ray.train import ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from bench.cluster.connect import connected, possible_resources
from bench.config import RunConfig
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.rows import Row, failed_row
from bench.runs.worker import Known, work
from grun.errors import UserError
from grun.workers import Workers

ATTEMPTS = 3
"""How often a run is started whose workers die; an error of its own ends it at once."""
logger = logging.getLogger(__name__)


def work_together(configs: Sequence[RunConfig], execution: Execution, known: Known, study: str | None) -> list[Row]:
    """`bench.runs.worker.work` on `execution.num_workers` workers.

    Raises what a worker raised; RuntimeError where workers died again and again.
    """
    alone = replace(execution, num_workers=1, ray_train="auto")
    part = {"configs": configs, "execution": alone, "known": known, "study": study}
    attempt = 1
    with connected(logger.warning):
        _check_fits(execution)
        while True:
            try:
                return _fit(part, execution)
            except TrainingFailedError as error:
                own = own_error(error)
                if own is None and attempt < ATTEMPTS:
                    logger.warning("a worker died; its run goes on from the last checkpoint")
                    attempt += 1
                    continue
                cause = own or RuntimeError(f"workers died {ATTEMPTS} times")
                store.write_run(execution.results, failed_row(configs[0], cause, study))
                raise cause from error


def _fit(part: dict[str, Any], execution: Execution) -> list[Row]:
    """The first worker's rows."""
    gpus = execution.gpus_per_worker or 0.0
    scaling = ScalingConfig(
        num_workers=execution.num_workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": execution.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
    )
    torch_config = TorchConfig(backend="nccl" if gpus >= 1 else "gloo")
    # For Ray's own notes: our checkpoints are in the results.
    with tempfile.TemporaryDirectory(prefix="grun-bench-train-", ignore_cleanup_errors=True) as scratch:
        notes = ray.train.RunConfig(name=f"train-{uuid.uuid4().hex}", storage_path=scratch)
        trainer = TorchTrainer(
            _in_a_worker, train_loop_config=part, scaling_config=scaling, torch_config=torch_config, run_config=notes
        )
        return list(trainer.fit().return_value)


def _in_a_worker(part: dict[str, Any]) -> list[Row]:
    context = ray.train.get_context()
    sharded = part["execution"].shard
    rows = work(**part, workers=Workers(rank=context.get_world_rank(), size=context.get_world_size(), sharded=sharded))
    ray.train.report({})
    return rows


def own_error(error: TrainingFailedError) -> Exception | None:
    """What the run itself raised in a worker; None where workers died."""
    if not isinstance(error, WorkerGroupError):
        return error
    raised = [failure for failure in error.worker_failures.values() if not isinstance(failure, ray.exceptions.RayError)]
    mine = [failure for failure in raised if isinstance(failure, UserError)]
    return (mine or raised or [None])[0]


def _check_fits(execution: Execution) -> None:
    """Raises UserError where the workers can never all run at once: Ray would wait for ever."""
    there, number = possible_resources(), execution.num_workers
    for kind, each in (("CPU", execution.cpus_per_worker), ("GPU", execution.gpus_per_worker or 0.0)):
        wanted, have = each * number, there.get(kind, 0.0)
        if wanted > have:
            problem = f"{number} of {each:g} {kind}s need {wanted:g}, and there are {have:g}; use fewer"
            raise UserError("--num-workers", problem)
