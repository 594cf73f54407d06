"""One run on several workers: Ray Train starts them, each does its part, the first one writes."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from bench.cluster.connect import connected, possible_resources
from bench.config import RunConfig, run_config
from bench.progress import Progress
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.related import reference_config, references
from bench.runs.run import failed_row, run, run_missing
from grun.errors import UserError
from grun.workers import Workers

ATTEMPTS = 3
"""How often a run is started whose workers die; an error of its own ends it at once."""
logger = logging.getLogger(__name__)


def run_on_workers(
    configs: Sequence[RunConfig], execution: Execution, *, study: str | None, progress: Progress
) -> None:
    """`bench.runs.run.run_missing` on `execution.num_workers` workers. What it is measured against is there before.

    Raises what a worker raised; RuntimeError where workers died again and again.
    """
    config = configs[0]
    for start_from in references(config):
        reference = reference_config(config, start_from)
        if reference.run_key == config.run_key:
            break
        run(reference, execution, progress=progress)
    spec = {
        "configs": [each.to_json() for each in configs],
        "execution": replace(execution, num_workers=1, ray_train="auto"),
        "study": study,
    }
    with connected(logger.warning):
        _check_fits(execution)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fit(spec, execution)
            except TrainingFailedError as error:
                own = own_error(error)
                if own is None and attempt < ATTEMPTS:
                    logger.warning("a worker died; its run goes on from the last checkpoint")
                    continue
                cause = own or RuntimeError(f"workers died {ATTEMPTS} times")
                store.write_run(execution.results, failed_row(config, cause, study))
                raise cause from error
            return


def _fit(spec: dict[str, Any], execution: Execution) -> None:
    scratch = tempfile.mkdtemp(prefix="grun-bench-train-")  # for Ray's own notes: our checkpoints are in the results
    resources = {"CPU": float(execution.cpus_per_worker)}
    if execution.gpus_per_worker:
        resources["GPU"] = execution.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config=spec,
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers,
            use_gpu=execution.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if execution.gpus_per_worker >= 1 else "gloo"),
        run_config=ray.train.RunConfig(
            name=f"train-{uuid.uuid4().hex}", storage_path=scratch, failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _work(spec: dict[str, Any]) -> None:
    """In a worker."""
    context, execution = ray.train.get_context(), spec["execution"]
    run_missing(
        [run_config(json.loads(text)) for text in spec["configs"]],
        execution,
        study=spec["study"],
        workers=Workers(rank=context.get_world_rank(), size=context.get_world_size(), sharded=execution.shard),
    )
    ray.train.report({})


def own_error(error: TrainingFailedError) -> Exception | None:
    """What the run itself raised in a worker; None where workers died."""
    if not isinstance(error, WorkerGroupError):
        return error
    raised = [failure for failure in error.worker_failures.values() if not isinstance(failure, ray.exceptions.RayError)]
    mine = [failure for failure in raised if isinstance(failure, UserError)]
    return (mine or raised or [None])[0]


def _check_fits(execution: Execution) -> None:
    """Raises UserError where the workers can never all run at once: Ray would wait for ever."""
    there = possible_resources()
    for kind, each in (("CPU", execution.cpus_per_worker), ("GPU", execution.gpus_per_worker)):
        wanted, have = each * execution.num_workers, there.get(kind, 0.0)
        if wanted > have:
            raise UserError(
                "--num-workers",
                f"{execution.num_workers} of {each:g} {kind}s need {wanted:g}, and there are {have:g}; use fewer",
            )
