"""Ray Tune with Optuna: several studies in one pool of workers, resumable, every finished training kept."""

import errno
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna
from ray import tune

from bench.benchmarks import HEADLINES
from bench.cluster.connect import connected
from bench.config import RunConfig, run_config
from bench.progress import spoken
from bench.results import store
from bench.results.columns import SCORES
from bench.results.doubt import doubt
from bench.results.storage import is_full
from bench.runs.execution import Execution
from bench.runs.related import has_retain_model, prerequisite, prerequisites
from bench.runs.rows import Row, failed_row
from bench.runs.run import check_size, prepare, run
from bench.spaces.search_space import SweepConfig
from bench.studies.pool import Pool, place, study_locks
from bench.studies.search import StudySearch
from bench.studies.tasks import Log, Tasks, resources_of
from grun.errors import UserError

RunTrial = Callable[..., list[Row]]
"""`bench.runs.run.run`, or what is called like it: writes a run's rows to the results, and returns them."""


def sweep(
    studies: Sequence[SweepConfig], execution: Execution, pool: Pool, log: Log, run_trial: RunTrial = run
) -> None:
    """Run every study up to its budget, going on from what the results folder already holds.

    log: gets one line for each thing worth knowing, one for each finished trial among them.
    run_trial: what a trial does, here or on another node.
    Raises UserError where the studies cannot be compared, cannot be measured or cannot be placed.
    """
    _check_comparable(studies)
    store.create(execution.folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    with study_locks([study.study for study in studies], execution.folder), connected(log):
        num_concurrent, worker = place(pool, execution)
        for study in studies:
            worker.check(study.run({}))
        make_prerequisites([study.run({}) for study in studies], worker, log, num_concurrent)
        _check_measurable(studies, worker)
        search = StudySearch(studies, execution.results, log, pool)
        if search.num_trials_left == 0:
            log("every study has used its budget; nothing to do (raise --num-trials or --seconds-per-study to go on)")
            return
        log(f"{search.num_trials_left} trainings to do, {num_concurrent} at a time")
        trial = tune.with_parameters(
            _trial, execution=worker, studies={study.study: study for study in studies}, run_trial=run_trial
        )
        _tune(tune.with_resources(trial, resources_of(worker)), search, num_concurrent)
        if search.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _tune(trial: Any, search: StudySearch, num_concurrent: int) -> None:
    """Trials until the studies have had enough. Ray's own notes go where nobody looks: ours are in the results."""
    settings = tune.TuneConfig(
        search_alg=search,
        num_samples=search.num_trials_left,
        max_concurrent_trials=num_concurrent,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    retried = tune.FailureConfig(max_failures=2)
    with tempfile.TemporaryDirectory(prefix="grun-bench-tune-", ignore_cleanup_errors=True) as scratch:
        notes = tune.RunConfig(storage_path=scratch, verbose=0, failure_config=retried)
        tune.Tuner(trial, tune_config=settings, run_config=notes).fit()


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
    kept = (*study.objectives, "run_key", "method", "gate_threshold", "train_seconds", "eval_seconds")
    tune.report({"rows": [{name: row[name] for name in kept} for row in rows]})


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


def _check_measurable(studies: Sequence[SweepConfig], execution: Execution) -> None:
    """Raises UserError where an objective has no value on this benchmark: the target model's row knows it already."""
    for study in studies:
        config = study.run({})
        row = store.read_run(execution.results, prerequisite(config, "target_model").run_key) or {}
        for name in set(study.objectives) & row.keys() & SCORES.keys():
            if row[name] is None and "gate" not in name:  # the target has no gates
                have = [each for each in config.benchmark.headlines if row[each] is not None]
                raise UserError(
                    "objectives",
                    f"{name} of {study.study} has no value on this benchmark and model; use others, "
                    f"such as {' and '.join(have[:3])}",
                )


def make_prerequisites(
    configs: Sequence[RunConfig], execution: Execution, log: Log, at_once: int | None = None
) -> None:
    """Target and retain models trained side by side, so many at once, and evaluated, before any run needs them."""
    needed = {each.run_key: each for config in configs for each in prerequisites(config)}
    missing = [each for key, each in needed.items() if store.read_run(execution.results, key) is None]
    if not missing:
        return
    log("preparing target and retain models")
    tasks = Tasks(execution, log, at_once)
    tasks.add(_check_sizes, configs)
    tasks.wait()
    # Only what one worker does not hold is asked by several.
    asking = execution if execution.shard else replace(execution, num_workers=1, ray_train="auto")
    # What is measured with nothing is asked at once, while others are still taught.
    begun = [each for each in missing if asking == execution and not prerequisites(each)]
    for each in missing:
        tasks.add(_prepare_and_evaluate if each in begun else _prepare, each, execution)
    tasks.wait()
    missing = [each for each in missing if each not in begun]
    tasks = Tasks(asking, log, at_once)
    for start_from in dict.fromkeys(each.start_from for each in missing):  # each is measured with those before it
        for each in missing:
            if each.start_from == start_from:
                tasks.add(_evaluate, each, asking)
        tasks.wait()


def _check_sizes(configs: Sequence[RunConfig], say: Log) -> None:
    """In a worker, where torch is: before hours are spent on models that a run cannot work on."""
    for config in configs:
        check_size(config)


def _prepare(config: RunConfig, execution: Execution, say: Log) -> None:
    """In a worker, or with workers of its own: a model in the cache, saying now and then how far it is."""
    with _named(config.start_from):
        prepare(config, execution, spoken(say))


def _prepare_and_evaluate(config: RunConfig, execution: Execution, say: Log) -> None:
    """Both, in one worker."""
    _prepare(config, execution, say)
    _evaluate(config, execution, say)


def _evaluate(config: RunConfig, execution: Execution, say: Log) -> None:
    """In a worker: the row of what others are measured with."""
    with _named(config.start_from):
        (row,) = run(config, execution)
    say(f"{config.start_from}: {headlines_of(row)}")
    retain = store.read_run(execution.results, prerequisite(config, "retain_model").run_key)
    if config.start_from == "target_model" and (line := doubt(row, retain)):
        say(line)


def headlines_of(row: Row) -> str:
    """What the row's benchmark shows first, in one line."""
    names = [name for name in HEADLINES if row[name] is not None]
    return ", ".join(f"{SCORES[name].heading} {row[name]:.3f}" for name in names)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Without these models nothing can be measured: whatever is wrong with them ends the command, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(what, f"{type(error).__name__}: {error}") from None
