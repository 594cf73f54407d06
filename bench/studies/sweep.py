"""Ray Tune with Optuna: several studies in one pool of workers, resumable, every finished training kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import optuna
import ray
import torch
from filelock import FileLock, Timeout
from ray import tune

from bench.cluster.connect import DRIVER, connected, possible_resources
from bench.config import RunConfig, run_config
from bench.models.prepare import StartFrom, prepared_model
from bench.results import store
from bench.results.storage import Location, is_full
from bench.runs.execution import Execution
from bench.runs.related import has_retain_model, reference_config, references
from bench.runs.run import Row, evaluate_references, failed_row, run
from bench.studies.search import Log, StudySearch
from bench.studies.search_space import SweepConfig
from grun.errors import UserError

RunTrial = Callable[..., list[Row]]
"""`bench.runs.run.run`, or what is called like it: writes a run's rows to the results, and returns them."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the trials may use."""

    num_concurrent: int | None = None
    """Trials at once; None: as many as fit."""
    time_budget_s: float | None = None
    """Seconds after which no trial is begun; None: none are too many."""
    cpus_per_worker: int = 1
    """CPUs, and torch threads, of each worker of a trial."""
    gpus_per_worker: float | None = None
    """GPUs of each, fractions allowed; None: one where the cluster has any."""


def sweep(
    studies: Sequence[SweepConfig], execution: Execution, pool: Pool, log: Log, run_trial: RunTrial = run
) -> None:
    """Run every study up to its budget, going on from what the results folder already holds.

    log: gets one line for each thing worth knowing, one for each finished trial among them.
    run_trial: what a trial does, here or on another node.
    Raises UserError where the studies cannot be compared, cannot be measured or cannot be placed.
    """
    names = [study.study for study in studies]
    check_names(names)
    _check_comparable(studies)
    store.create(execution.folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    with study_locks(names, execution.folder), connected(log):
        placement = place(pool, execution)
        worker = placement.worker
        prepare_references(studies, worker, log)
        search = StudySearch(studies, execution.results, log, pool.time_budget_s)
        if search.num_trials_left == 0:
            log("every study has used its budget; nothing to do (raise --num-trials to go on)")
            return
        log(f"{search.num_trials_left} trainings to do, {placement.num_concurrent} at a time")
        scratch = tempfile.mkdtemp(prefix="grun-bench-tune-")
        try:
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(
                        _trial, execution=worker, studies={s.study: s for s in studies}, run_trial=run_trial
                    ),
                    _trial_resources(worker),
                ),
                tune_config=tune.TuneConfig(
                    search_alg=search,
                    num_samples=search.num_trials_left,
                    max_concurrent_trials=placement.num_concurrent,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=2),
                ),
            )
            tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if search.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _trial(spec: dict[str, Any], execution: Execution, studies: Mapping[str, SweepConfig], run_trial: RunTrial) -> None:
    """One training with its evaluations, in a worker. An error becomes a row, so Tune does not try it again."""
    config = run_config(json.loads(spec["run_json"]))
    study = studies[spec["study"]]
    try:
        rows = run_trial(
            config,
            replace(execution, save_module=config.adapter.is_small),
            gate_thresholds=study.gate_thresholds,
            study=study.study,
        )
        empty = [metric for metric in study.objectives if rows[0][metric] is None]
        if empty:
            raise UserError("objectives", f"{empty[0]} has no value on this benchmark and model; use another")
    except Exception as error:
        row, full = failed_row(config, error, study.study), is_full(error)
        try:
            store.write_run(execution.results, row)
        except OSError as another:
            full = full or is_full(another)
        tune.report({"error": row["error"], "full": full, "rows": []})
        return
    kept = (*study.objectives, "run_key", "method", "gate_threshold", "train_seconds")
    tune.report({"rows": [{name: row[name] for name in kept} for row in rows]})


def check_names(names: Sequence[str]) -> None:
    """Raises UserError where two studies of one command have the same name."""
    for name in names:
        if names.count(name) > 1:
            raise UserError("study", f"{name} is named twice on this command line; give each file its own study name")


def _check_comparable(studies: Sequence[SweepConfig]) -> None:
    first = studies[0]
    for study in studies:
        if dict(study.objectives) != dict(first.objectives):
            raise UserError("objectives", f"{study.study} and {first.study} differ; studies compared need the same")
        if not has_retain_model(study.run({})) and {"forget_quality", "log10_forget_quality"} & set(study.objectives):
            raise UserError(
                "model.retain_model",
                f"{study.study} optimises forget quality, which needs one; name it, or let model.fine_tuning make it",
            )


@contextmanager
def study_locks(names: Sequence[str], folder: Location) -> Iterator[None]:
    """Keep a second sweep out of a study that is running; other studies may share the folder.

    Object stores have no locks: there, it is the user who must not run a study twice at once.
    """
    with ExitStack() as stack:
        for name in names if folder.local else ():
            try:
                stack.enter_context(FileLock(f"{folder}/.sweep-{name.replace('/', '-')}.lock", timeout=0))
            except Timeout:
                raise UserError("study", f"{name} is being run by another sweep; wait for it") from None
        yield


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """What fits where."""

    num_concurrent: int
    """Trials at once."""
    worker: Execution
    """How a trial's workers run."""


def place(pool: Pool, execution: Execution) -> _Placement:
    """Raises UserError with the numbers where not even what was asked for fits: Ray would wait for ever."""
    there, num_workers = possible_resources(), execution.num_workers
    if execution.uses_ray_train and not there.get(DRIVER):
        raise UserError(
            "--num-workers", f"the cluster has no resource {DRIVER}; start its head with `{{{DRIVER}: 1000}}`"
        )
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    gpus_per_worker = pool.gpus_per_worker if pool.gpus_per_worker is not None else float(gpus >= 1)
    for option, kind, each, have in (
        ("--gpus-per-worker", "GPU", gpus_per_worker, gpus),
        ("--cpus-per-worker", "CPU", pool.cpus_per_worker, cpus),
    ):
        if each * num_workers > have:
            raise UserError(
                option,
                f"{num_workers} x {each:g} asked for a trial, but there are {have:g} {kind}s; use fewer",
            )
    fit = int(cpus // (pool.cpus_per_worker * num_workers))
    if gpus_per_worker:
        fit = min(fit, int(gpus / (gpus_per_worker * num_workers)))
    if pool.num_concurrent is not None and pool.num_concurrent > fit:
        raise UserError(
            "--num-concurrent",
            f"{pool.num_concurrent} trials of {num_workers} x ({pool.cpus_per_worker} CPUs, {gpus_per_worker:g} GPUs) "
            f"do not fit {cpus:g} CPUs and {gpus:g} GPUs; use at most {fit}",
        )
    worker = replace(
        execution,
        num_threads=pool.cpus_per_worker,
        cpus_per_worker=pool.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        device="cuda" if gpus_per_worker else execution.device,
    )
    return _Placement(num_concurrent=pool.num_concurrent or fit, worker=worker)


class _Board:
    """Where workers say how far they are, for the driver to show."""

    def __init__(self) -> None:
        self.phases: dict[str, tuple[int, int]] = {}

    def post(self, phase: str, done: int, total: int) -> None:
        self.phases[phase] = (done, total)

    def read(self) -> dict[str, tuple[int, int]]:
        return self.phases


def _trial_resources(execution: Execution) -> dict[str, float]:
    """Of the process that runs a trial: a trial's own workers take theirs beside it."""
    if execution.uses_ray_train:
        return {DRIVER: 1.0}
    return {"cpu": float(execution.cpus_per_worker), "gpu": execution.gpus_per_worker}


def prepare_references(studies: Sequence[SweepConfig], execution: Execution, log: Log) -> None:
    """Target and retain models trained side by side and evaluated, before any trial needs them."""
    configs: dict[str, RunConfig] = {}
    for study in studies:
        config = study.run({})
        configs[reference_config(config, "target_model").run_key] = config
    needed = [
        config
        for config in configs.values()
        for start_from in references(config)
        if store.read_run(execution.results, reference_config(config, start_from).run_key) is None
    ]
    if not needed:
        return
    log("preparing target and retain models")
    board = ray.remote(num_cpus=0)(_Board).remote()
    cpus = execution.cpus_per_worker
    remote = ray.remote(num_cpus=cpus, num_gpus=execution.gpus_per_worker)
    prepare = remote(_prepare_task)
    _wait([prepare.remote(c, s, cpus, board) for c in configs.values() for s in references(c)], board, log)
    evaluate = remote(evaluate_references)
    alone = replace(execution, num_workers=1, ray_train="auto")
    for rows in ray.get([evaluate.remote(config, alone) for config in configs.values()]):
        for row in rows:
            log(
                f"{row['method']}: forget ROUGE-L {row['forget_rouge_l_recall']:.3f}, "
                f"retain ROUGE-L {row['retain_rouge_l_recall']:.3f}"
            )


def _prepare_task(config: RunConfig, start_from: StartFrom, num_threads: int, board: Any) -> str:
    torch.set_num_threads(num_threads)
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.perf_counter() - last > 2:
            last = time.perf_counter()
            board.post.remote(start_from, done, total)

    return prepared_model(config.model, config.benchmark.load(), start_from, progress)


def _wait(tasks: list[Any], board: Any, log: Log) -> None:
    """Until all are done, say every ten seconds how far they are."""
    pending = tasks
    while pending:
        done, pending = ray.wait(pending, timeout=10)
        ray.get(done)
        if pending:
            phases = ray.get(board.read.remote())
            if phases:
                log(", ".join(f"{phase} {at}/{total} steps" for phase, (at, total) in sorted(phases.items())))
