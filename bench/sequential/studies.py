"""search_spaces/sequential_*.yaml → tuned methods, each put to the same requests, on Ray."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import optuna
from annotated_types import Ge, MinLen

from bench.cluster.connect import connected
from bench.config import RunConfig
from bench.progress import Progress, spoken
from bench.reports.comparison import UTILITY_KEPT, utility_of
from bench.results import store
from bench.results.requests import read_requests, write_choice
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import failed_row
from bench.sequential.request import ExtraRequest, RequestSequence, Variant
from bench.sequential.run import run_sequence, train_modules
from bench.sequential.states import Say
from bench.spaces.parameters import Alternatives
from bench.spaces.search_space import Search, check_study, laid_in, read_as
from bench.studies.pool import Pool, place, study_locks
from bench.studies.sweep import make_prerequisites
from bench.studies.tasks import Log, Tasks
from grun.errors import UserError
from grun.sequential import Combination

Work = Callable[[RequestSequence, Execution, Say, Progress], None]
"""`run_sequence`, or what is called like it."""


@dataclass(frozen=True, kw_only=True)
class SequentialConfig(Search):
    """One method: what is tuned, and the requests it is put to."""

    num_requests: Annotated[int, Ge(1)] | None = None
    """The benchmark's first so many requests. None: all."""
    extra_requests: tuple[ExtraRequest, ...] = ()
    """Hard cases at the end: `repeat`, the first request again; `unknown`, what the model never knew."""
    measured_after: tuple[Annotated[int, Ge(1)], ...] = ()
    """Numbers of requests after which the state is measured, beside the last; empty: after each. For long chains of
    weights, whose states take an evaluation of everything each."""
    combinations: Annotated[tuple[Combination, ...], MinLen(1)] = ("sum",)
    """grun, gated_lora: how modules are combined; each is measured."""
    search_space: Mapping[str, Alternatives] = field(default_factory=dict)
    """Dotted RunConfig key → parameter, as in a sweep; empty: nothing is tuned."""
    num_trials: Annotated[int, Ge(1)] = 1
    """Configurations tried on the first requests; the best of them meets all."""
    num_tuning_requests: Annotated[int, Ge(1)] = 5
    """So many requests."""

    def sequence(self, config: RunConfig, own: Variant | None = None, *, tuning: bool = False) -> RequestSequence:
        """A configuration and the requests. own: the variant it was chosen with. tuning: meet the first ones only."""
        variants = self.variants(config)
        return RequestSequence(
            study=self.study,
            config=config,
            num_requests=self.num_requests,
            extra_requests=self.extra_requests,
            variants=tuple(dict.fromkeys([own, *variants] if own else variants)),
            only_after=(self.num_tuning_requests,) if tuning else self.measured_after,
        )

    def variants(self, config: RunConfig) -> list[Variant]:
        """All that is measured of one configuration's modules."""
        if not config.adapter.is_stackable:
            return [Variant(combination=None, gate_threshold=None)]
        thresholds: Mapping[float | None, None] = dict.fromkeys([config.adapter.gate_threshold, *self.gate_thresholds])
        if config.adapter.max_false_openings is not None:
            thresholds = {None: None}
        return [Variant(combination=c, gate_threshold=t) for c in self.combinations for t in thresholds]


def read_sequential(path: str, overrides: Mapping[str, Any], num_requests: int | None) -> SequentialConfig:
    """A file, checked like a sweep's. overrides: dotted RunConfig keys. num_requests: in place of the file's own.

    Raises UserError naming the file and the field.
    """
    config = read_as(SequentialConfig, path)
    config = replace(config, **laid_in(config, overrides), num_requests=num_requests or config.num_requests)
    check_study(path, config, overrides)
    run = config.run({})
    if not run.adapter.trains:
        raise UserError(f"{path}: adapter", "none trains nothing; choose grun, gated_lora, lora, full or reft")
    if run.evaluation.after is not None:
        raise UserError(f"{path}: evaluation.after", "a sequence is measured as it is; leave it out")
    count = len(config.sequence(run).requests())
    measured_after = {n for n in config.measured_after if n < count} | ({count} if config.measured_after else set())
    return replace(
        config,
        measured_after=tuple(sorted(measured_after)),
        num_tuning_requests=min(config.num_tuning_requests, count - len(config.extra_requests)),
    )


def run_studies(  # noqa: C901 (rounds of work, one after the other)
    studies: Sequence[SequentialConfig], execution: Execution, pool: Pool, log: Log
) -> None:
    """Tune every method on the first requests, then put the best configuration of each to all of them.

    Goes on from what the results folder holds. Raises UserError where nothing fits, or no trial of a method succeeds.
    """
    if execution.uses_ray_train:
        raise UserError("--num-workers", "a sequence has one worker for each method; leave it out")
    for study in studies:
        execution.check(study.run({}))
    store.create(execution.folder)
    with study_locks([study.study for study in studies], execution.folder), connected(log):
        num_concurrent, worker = place(pool, execution)
        make_prerequisites([study.run({}) for study in studies], worker, log, num_concurrent)
        tasks = Tasks(worker, log, num_concurrent)
        trials = {study.study: _trials(study) for study in studies}
        tuned = [study for study in studies if len(trials[study.study]) > 1]
        for study in tuned:
            log(f"{study.study}: {len(trials[study.study])} configurations, {study.num_tuning_requests} requests each")
            for config in trials[study.study]:
                tasks.add(_task, run_sequence, study.sequence(config, tuning=True), worker)
        tasks.wait()
        chosen = []
        for study in studies:
            configs = trials[study.study]
            chosen.append(_best(study, configs, execution) if study in tuned else study.sequence(configs[0]))
        for sequence in chosen:
            own = sequence.variants[0]
            write_choice(
                execution.folder, sequence.study, sequence.config.to_json(), own.combination, own.gate_threshold
            )
            if sequence.config.adapter.is_stackable:  # such modules know nothing of one another
                count = len(sequence.requests())
                for first in range(min(num_concurrent, count)):
                    places = range(first, count, num_concurrent)
                    tasks.add(_task, partial(train_modules, places=places), sequence, worker)
        tasks.wait()
        for sequence in chosen:
            for part in sequence.by_combination():
                tasks.add(_task, run_sequence, part, worker)
        failures = [failure for failure in tasks.wait() if failure]
        if failures:
            raise UserError("sequential", f"not everything succeeded, see the lines above; first: {failures[0]}")


def _task(work: Work, sequence: RequestSequence, execution: Execution, say: Say) -> str | None:
    """In a worker. An error becomes a row of `runs` and a line, and is returned."""
    try:
        work(sequence, execution, say, spoken(lambda line: say(f"{sequence.study}: {line}")))
    except Exception as error:
        row = failed_row(sequence.config, error, sequence.study)
        store.write_run(execution.folder, row)
        say(f"{sequence.study}, {sequence.config.method}: failed: {row['error']}")
        return str(row["error"])
    return None


def _trials(study: SequentialConfig) -> list[RunConfig]:
    """The configurations to be tried, drawn at random, the initial points first: the same at every call."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=study.seed))
    for point in study.initial_parameters():
        drawn.enqueue_trial(point)
    configs = [study.run(study.sample(drawn.ask())) for _ in range(study.num_trials)]
    return list({config.run_key: config for config in configs}.values())


def _best(study: SequentialConfig, configs: Sequence[RunConfig], execution: Execution) -> RequestSequence:
    """Least forget ROUGE-L after the tuning requests among what keeps 95 % of the target's utility.

    Of equals the one that keeps most; where nothing keeps 95 %, too. Raises UserError where every trial failed.
    """
    candidates = []
    requests = study.sequence(configs[0]).requests()[: study.num_tuning_requests]
    for config in configs:
        sequence = study.sequence(config, tuning=True)
        for variant in sequence.variants:
            rows = read_requests(execution.folder, sequence.state_key(requests, variant))
            if rows:
                candidates.append((config, variant, rows[0]))
    if not candidates:
        raise UserError("search_space", f"every trial of {study.study} failed; see the lines above")
    target = store.read_run(execution.folder, prerequisite(configs[0], "target_model").run_key)
    assert target is not None, "it was evaluated before anything was tuned"
    name = utility_of(target)
    keeping = [found for found in candidates if found[2][name] >= UTILITY_KEPT * target[name]]
    if keeping:
        config, variant, _ = min(keeping, key=lambda found: (found[2]["requested_rouge_l_recall"], -found[2][name]))
    else:
        config, variant, _ = max(candidates, key=lambda found: found[2][name])
    return study.sequence(config, variant)
