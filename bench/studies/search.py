"""The Optuna side of a sweep: several studies that take turns, kept in one journal file, resumed where cut off."""

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState
from ray.tune.search import Searcher

from bench.config import RunConfig
from bench.pareto import nondominated
from bench.results import store
from bench.results.storage import Folder, is_full
from bench.runs.related import at_thresholds
from bench.runs.rows import Row, failed_row
from bench.spaces.search_space import THRESHOLD, SweepConfig, differences
from bench.studies.journal import keep_journal, study_storage
from bench.studies.pool import UNLIMITED, Pool
from bench.studies.tasks import Log
from grun.errors import UserError

INTERRUPTED = "interrupted"
"""Optuna user attribute of a trial that was cut off while it was drawn; it does not count against the budget."""
RUN_KEY = "run_key"
"""Optuna user attribute: the key of the trial's row."""
DEFINITION = "definition"
"""Optuna user attribute of a study: the base and the search space it was begun with."""
AGAIN = "again"
"""Optuna user attribute of a trial that makes up for the lost rows of another: its number. The other one counts."""
FROM_THRESHOLD = "module_of"
"""Optuna user attribute of a trial that is another one's module at another gate threshold."""


@dataclass(frozen=True)
class _Begun:
    """A trial that is under way."""

    study: str
    trial: Trial
    """Optuna's."""
    run: RunConfig
    was_there: bool
    """Whether its rows were there before: then it says nothing about the pace."""
    at: float
    """When, by `time.perf_counter`."""


class StudySearch(Searcher):
    """Several Optuna studies behind one Tuner, taking turns, so that all progress alike and no worker idles.

    All state is in Optuna's storage in the results folder; a new one goes on where the last one was cut off.
    """

    def __init__(
        self, studies: Sequence[SweepConfig], results_folder: Folder, log: Log, pool: Pool = UNLIMITED
    ) -> None:
        """pool: its limits of time. Where one is reached no trial is begun; those under way are finished."""
        self._objectives = dict(studies[0].objectives)
        super().__init__()  # without metrics: Tune would insist on them even for a failed trial
        self._results = results_folder
        self._log = log
        self._configs = {study.study: study for study in studies}
        self._storage = study_storage(results_folder)
        self._damaged = {file.name.partition(".")[0] for file in store.damaged_files(results_folder)}
        self._seconds_per_study = pool.seconds_per_study or math.inf
        self._left: dict[str, int] = {}
        self._spent: dict[str, float] = {}
        """Study → seconds of its trainings and evaluations; of those before now only where there is a limit."""
        self._studies: dict[str, optuna.Study] = {}
        self._under_way: dict[str, _Begun] = {}
        """By Tune's trial."""
        for name, config in self._configs.items():
            self._open(name, config)
        self.num_trials_left = sum(self._left.values())
        self._num_done, self._num_found, self._spent_before = 0, 0, sum(self._spent.values())
        self._out_of_time = False
        self.is_full = False
        """Whether the results folder ran out of space."""
        self._started = time.perf_counter()
        self._deadline = math.inf if pool.time_budget is None else self._started + 60 * pool.time_budget
        self._seen: list[list[float]] = []
        """Objectives of every row of this sweep so far."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next run of the study that is furthest from its budget; called by Tune. None: later, perhaps."""
        if self.is_full or not any(self._left.values()):
            return Searcher.FINISHED
        if time.perf_counter() > self._deadline:
            if not self._out_of_time:
                self._log("the time budget is used up; what is under way is finished, the same command goes on")
            self._out_of_time = True
            return Searcher.FINISHED
        to_go_on = {study: num_left for study, num_left in self._left.items() if num_left and self._may_begin(study)}
        if not to_go_on:
            return None
        name = max(to_go_on, key=lambda study: to_go_on[study])
        self._left[name] -= 1
        try:
            trial = self._studies[name].ask()
            run = self._configs[name].run(self._configs[name].sample(trial))
            trial.set_user_attr(RUN_KEY, run.run_key)
            was_there = store.read_run(self._results, run.run_key) is not None
        except OSError as problem:
            return self._stop_if_full(problem)
        self._under_way[trial_id] = _Begun(name, trial, run, was_there, time.perf_counter())
        return {"study": name, "run_json": run.to_json()}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna, and the user; called by Tune. A trial that found no space is left to the next sweep."""
        if (result or {}).get("full"):
            self.is_full = True
            return
        try:
            self._settle_finished(trial_id, result or {})
        except OSError as problem:
            self._stop_if_full(problem)

    def _stop_if_full(self, problem: OSError) -> str:
        """Begin nothing more once the results folder is full; Optuna's running trials are settled when it is opened."""
        if not is_full(problem):
            raise problem
        self.is_full = True
        return str(Searcher.FINISHED)

    def _settle_finished(self, trial_id: str, result: Mapping[str, Any]) -> None:
        begun, rows = self._under_way.pop(trial_id), result.get("rows", [])
        name, trial = begun.study, begun.trial
        self._num_done += 1
        self._num_found += begun.was_there
        if rows:
            values = {metric: rows[0][metric] for metric in self._objectives}
            self._studies[name].tell(trial, list(values.values()))
            self._add_thresholds(name, trial.number, rows[1:])
            self._spend(name, rows)
            self._spent_before += begun.was_there * _seconds(rows)
            scores = "  ".join(f"{metric} {value:.3f}" for metric, value in values.items())
            line = f"{rows[0]['method']}  {scores}  {rows[0]['train_seconds']:.0f} s{self._on_the_front(rows)}"
        else:
            self._studies[name].tell(trial, state=TrialState.FAIL)
            problem = result.get("error")
            if problem is None:  # the worker died, and its replacements too: nobody else has written a row
                problem = "the worker died"
                store.write_run(self._results, failed_row(begun.run, RuntimeError(problem), name))
            line = f"failed: {problem}"
        keep_journal(self._results)
        self._log(f"[{self._num_done}/{self.num_trials_left}{self._pace()}] {name}: {line}")

    def _pace(self) -> str:
        """How fast it goes, of what was not there before, and how long at that."""
        elapsed, num_new = time.perf_counter() - self._started, self._num_done - self._num_found
        if num_new == 0:
            return ""
        return f", {60 * num_new / elapsed:.1f} a minute, {self._seconds_left(elapsed) / 60:.0f} min left"

    def _may_begin(self, name: str) -> bool:
        """Whether a study has seconds left when what it has under way is counted as far as it is."""
        under_way = [time.perf_counter() - begun.at for begun in self._under_way.values() if begun.study == name]
        return self._spent[name] + sum(under_way) < self._seconds_per_study

    def _spend(self, name: str, rows: Sequence[Row]) -> None:
        """Count what a trial took; a study that has had its seconds begins no other."""
        self._spent[name] += _seconds(rows)
        if self._spent[name] >= self._seconds_per_study and self._left[name]:
            self.num_trials_left -= self._left[name]
            self._left[name] = 0

    def _seconds_left(self, elapsed: float) -> float:
        """Until the studies have had their trials or their seconds, at the pace so far. elapsed: seconds so far."""
        by_trials = elapsed / (self._num_done - self._num_found) * (self.num_trials_left - self._num_done)
        spent = sum(self._spent.values()) - self._spent_before
        if math.isinf(self._seconds_per_study) or not spent:
            return by_trials
        busy = {begun.study for begun in self._under_way.values()}
        to_spend = [self._seconds_per_study - self._spent[name] for name, n in self._left.items() if n or name in busy]
        return min(by_trials, elapsed / spent * sum(max(0.0, seconds) for seconds in to_spend))

    def _on_the_front(self, rows: Sequence[Row]) -> str:
        """Whether a trial's rows are on the front of this sweep so far, and how long that is."""
        self._seen += [[row[metric] for metric in self._objectives] for row in rows]
        kept = nondominated(np.array(self._seen), list(self._objectives.values()))
        on_it = int(kept[-len(rows) :].sum())
        return f"  front of {kept.sum()}" + (f", {on_it} of them new" if on_it else "")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is in Optuna's storage."""

    def _open(self, name: str, config: SweepConfig) -> None:
        """Open a study, settle what an earlier process left unfinished, and work out what is left to do."""
        study = self._studies[name] = self._study(name, config)
        is_new = not study.trials
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            self._settle(study, config, trial)
        if is_new:
            for parameters in config.initial_parameters():
                study.enqueue_trial(parameters)
        done = [trial for trial in study.trials if trial.state.is_finished() and _counts(trial)]
        lost = [trial for trial in done if self._is_damaged(config, trial)]
        limited = done if math.isfinite(self._seconds_per_study) else []
        self._spent[name] = sum(_seconds(rows) for trial in limited if (rows := self._rows(config, trial)))
        is_spent = self._spent[name] >= self._seconds_per_study
        self._left[name] = 0 if is_spent else max(0, config.num_trials - len(done)) + len(lost)
        if done:
            self._log(f"{name}: {len(done)} of {config.num_trials} trainings are done already")
        if lost:
            self._log(f"{name}: {len(lost)} of them left rows that are damaged, and are done again")
        queued = {trial.user_attrs.get(AGAIN) for trial in study.get_trials(states=[TrialState.WAITING])}
        for trial in lost:
            if trial.number not in queued:
                study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        study.sampler = _sampler(config, len(study.trials))

    def _is_damaged(self, config: SweepConfig, trial: FrozenTrial) -> bool:
        """Whether a row of a finished trial was written and cannot be read any more, or its items cannot."""
        if not self._damaged or trial.state != TrialState.COMPLETE or RUN_KEY not in trial.user_attrs:
            return False
        return any(run.run_key in self._damaged for run in _runs(config, trial))

    def _rows(self, config: SweepConfig, trial: FrozenTrial) -> list[Row]:
        """Those that a trial has written, its own and those at further gate thresholds; none where it failed."""
        if RUN_KEY not in trial.user_attrs:  # it was cut off before all its parameters were drawn
            return []
        rows = [store.read_run(self._results, run.run_key) for run in _runs(config, trial)]
        return [row for row in rows if row is not None]

    def _study(self, name: str, config: SweepConfig) -> optuna.Study:
        """Begun now or before. Raises UserError where it was begun as something else: its trials would not compare."""
        names, ways = list(config.objectives), config.objectives.values()
        directions = [StudyDirection.MAXIMIZE if way == "max" else StudyDirection.MINIMIZE for way in ways]
        study = optuna.create_study(study_name=name, storage=self._storage, directions=directions, load_if_exists=True)
        if study.directions != directions or study.user_attrs.get("objectives", names) != names:
            raise UserError("objectives", f"study {name} was begun with others; rename the study or keep them")
        before, now = study.user_attrs.get(DEFINITION), config.definition()
        if before is None:
            study.set_user_attr("objectives", names)
            study.set_user_attr(DEFINITION, now)
        elif changed := differences(before, now):
            raise UserError("study", f"{name} was begun with {changed}; rename the study, or use another --results")
        return study

    def _settle(self, study: optuna.Study, config: SweepConfig, trial: FrozenTrial) -> None:
        """A trial that was running when its process ended: told where all its rows were written, else tried next."""
        written = self._rows(config, trial)
        # Optuna tells nobody the id under which its storage knows a trial: look here again when it is upgraded.
        if written and len(written) == len(_runs(config, trial)):
            study.tell(trial.number, [written[0][metric] for metric in config.objectives])
            self._add_thresholds(config.study, trial.number, written[1:])
        elif RUN_KEY in trial.user_attrs:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        else:  # an invalid draw must not be drawn again
            self._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            study.tell(trial.number, state=TrialState.FAIL)

    def _add_thresholds(self, name: str, number: int, rows: Sequence[Row]) -> None:
        """The module of trial `number` at further gate thresholds, as finished trials to learn from."""
        study = self._studies[name]
        asked = study.get_trials(deepcopy=False)[number]
        for parameter_name, parameter in self._configs[name].parameters(THRESHOLD).items():
            for row in rows:
                if parameter_name in asked.params and parameter.holds(row["gate_threshold"]):
                    study.add_trial(
                        optuna.create_trial(
                            params={**asked.params, parameter_name: parameter.stored(row["gate_threshold"])},
                            distributions=asked.distributions,
                            values=[row[metric] for metric in self._objectives],
                            user_attrs={FROM_THRESHOLD: number, RUN_KEY: row["run_key"]},
                        )
                    )


def _counts(trial: FrozenTrial) -> bool:
    """Whether a finished trial used up budget: it was trained for itself, for the first time, and was not cut off."""
    return not {INTERRUPTED, FROM_THRESHOLD, AGAIN} & trial.user_attrs.keys()


def _runs(config: SweepConfig, trial: FrozenTrial) -> list[RunConfig]:
    """What a trial runs, whose parameters are all drawn: its own config, then its module at further gate thresholds."""
    return at_thresholds(config.run(config.sample(FixedTrial(trial.params))), config.gate_thresholds)


def _seconds(rows: Sequence[Row]) -> float:
    """What a training and its evaluations took. rows: all of its module, not none."""
    return float(rows[0]["train_seconds"] + sum(row["eval_seconds"] for row in rows))


def _sampler(config: SweepConfig, num_trials: int) -> optuna.samplers.BaseSampler:
    """A sampler whose seed depends on how far the study is: a resumed one must not repeat its first draws."""
    seed = zlib.crc32(f"{config.study}/{config.seed}/{num_trials}".encode())
    match config.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
