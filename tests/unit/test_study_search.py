"""Going on after a crash: what becomes of a trial that was running, by how many of its rows were written."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState

from bench.config import RunConfig, run_config
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.related import at_thresholds
from bench.spaces.parameters import Categorical, FloatRange
from bench.spaces.search_space import SweepConfig
from bench.speed.scaling.no_op import no_op, no_op_rows
from bench.studies.journal import study_storage
from bench.studies.pool import Pool
from bench.studies.search import FROM_THRESHOLD, RUN_KEY, StudySearch
from grun.errors import UserError

STUDY = SweepConfig(
    study="s",
    search_space={
        "adapter.gate_threshold": (FloatRange(type="float", low=0.0, high=0.9),),
        "adapter.rank": (Categorical(type="categorical", choices=(2, 4)),),
    },
    gate_thresholds=(0.25, 0.5, 0.95),
    num_trials=2,
)


def _crashed(folder: Path, rows_written: int, keyed: bool = True) -> None:
    """A study with one running trial, of whose four rows some were written."""
    store.create(folder)
    study = optuna.create_study(study_name="s", storage=study_storage(folder), directions=["maximize", "maximize"])
    trial = study.ask()
    run = STUDY.run(STUDY.sample(trial))
    if keyed:
        trial.set_user_attr(RUN_KEY, run.run_key)
    for number, each in enumerate(at_thresholds(run, STUDY.gate_thresholds)[:rows_written]):
        scores: dict[str, Any] = {"log10_forget_quality": -1.0 - number, "model_utility": 0.5}
        threshold = each.adapter.gate_threshold  # type: ignore[union-attr]
        row = {"run_key": each.run_key, "status": "ok", "gate_threshold": threshold, "created_at": datetime.now(UTC)}
        store.write_run(folder, row | scores)


def _reopened(folder: Path) -> tuple[StudySearch, list[optuna.trial.FrozenTrial]]:
    search = StudySearch([STUDY], folder, lambda line: None)
    return search, optuna.load_study(study_name="s", storage=study_storage(folder)).trials


def test_all_rows_written_counts_as_done(tmp_path: Path) -> None:
    """Its values are told, and its thresholds within the range (0.95 is not) become trials too."""
    _crashed(tmp_path, rows_written=4)
    search, trials = _reopened(tmp_path)
    assert search.num_trials_left == 1
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert trials[0].values == [-1.0, 0.5]
    assert [trial.params["adapter.gate_threshold"] for trial in trials[1:]] == [0.25, 0.5]
    assert all(trial.user_attrs[FROM_THRESHOLD] == 0 for trial in trials[1:])


@pytest.mark.parametrize("rows_written", [0, 1, 3])
def test_anything_less_is_done_again(tmp_path: Path, rows_written: int) -> None:
    """Missing thresholds must not be lost: the same parameters are tried again, and only then count."""
    _crashed(tmp_path, rows_written)
    search, trials = _reopened(tmp_path)
    assert search.num_trials_left == 2
    assert [trial.state for trial in trials] == [TrialState.WAITING]
    suggested = search.suggest("new")
    assert isinstance(suggested, dict)
    assert run_config(json.loads(suggested["run_json"])).run_key == trials[0].user_attrs[RUN_KEY]
    _, after = _reopened(tmp_path)
    assert [trial.params for trial in after] == [trials[0].params]


def test_what_was_cut_off_comes_before_what_was_queued_behind_it(tmp_path: Path) -> None:
    """Of two points to begin with the first is done first, however often it is cut off."""
    points = ({"adapter.gate_threshold": 0.5, "adapter.rank": 4}, {"adapter.gate_threshold": 0.7, "adapter.rank": 2})
    study = replace(STUDY, initial_points=points)
    for _ in range(3):
        suggested = StudySearch([study], tmp_path, lambda line: None).suggest("t")  # and nothing more is heard of it
        assert isinstance(suggested, dict)
        config = run_config(json.loads(suggested["run_json"]))
        assert (_threshold(config), config.adapter.rank) == (0.5, 4)  # type: ignore[union-attr]


def test_what_was_there_before_says_nothing_about_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four trials the first was run by somebody else, for minutes; it is found in a second. The second takes 60, and
    so would the two that are left. Neither trials nor seconds, where those are the limit, go by the one found."""
    now, said = [0.0], list[str]()
    monkeypatch.setattr("bench.studies.search.time.perf_counter", lambda: now[0])
    store.create(tmp_path)
    study = replace(STUDY, gate_thresholds=(), num_trials=4)
    search = StudySearch([study], tmp_path, said.append, Pool(seconds_per_study=230.0))
    configs = []
    monkeypatch.setattr(store, "read_run", lambda folder, key: None if configs else {"run_key": key})
    for number, seconds in enumerate((1.0, 60.0)):
        suggested = search.suggest(f"t{number}")
        assert isinstance(suggested, dict)
        configs.append(run_config(json.loads(suggested["run_json"])))
        now[0] += seconds
        (row,) = no_op_rows(configs[-1], (), "s")
        search.on_trial_complete(f"t{number}", {"rows": [row | {"train_seconds": 50.0, "eval_seconds": 10.0}]})
    assert said[0].startswith("[1/4] s: ")
    assert said[1].startswith("[2/4, 1.0 a minute, 2 min left] s: ")


def test_a_trial_cut_off_while_it_was_drawn_is_dropped(tmp_path: Path) -> None:
    _crashed(tmp_path, rows_written=4, keyed=False)
    search, trials = _reopened(tmp_path)
    assert search.num_trials_left == 2
    assert trials[0].state == TrialState.FAIL


def test_a_trial_copies_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and told, with rows at further thresholds: a copy of all trials would make a sweep quadratic."""
    search = StudySearch([STUDY], tmp_path, lambda line: None)
    copied: list[bool] = []
    read = JournalStorage.get_all_trials

    def recorded(self: Any, study_id: int, deepcopy: bool = True, states: Any = None) -> Any:
        copied.append(deepcopy)
        return read(self, study_id, deepcopy, states)

    monkeypatch.setattr(JournalStorage, "get_all_trials", recorded)
    suggested = search.suggest("t")
    assert isinstance(suggested, dict)
    config = run_config(json.loads(suggested["run_json"]))
    search.on_trial_complete("t", {"rows": no_op_rows(config, STUDY.gate_thresholds, "s")})
    assert copied
    assert not any(copied)
    trials = optuna.load_study(study_name="s", storage=study_storage(tmp_path)).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3


def test_thresholds_of_a_list_or_under_a_condition_are_learnt_from(tmp_path: Path) -> None:
    """A list of 0.25 and 0.5 beside a measured 0.25, 0.5 and 0.95: of the two others than the trial's own, one or two
    lie in the list, never 0.95, and each is stored as the list's own choice."""
    choices = Categorical(type="categorical", choices=(0.0, 0.25, 0.5), when={"adapter": "grun"})
    study = replace(STUDY, search_space={"adapter.gate_threshold": (choices,)})
    search = StudySearch([study], tmp_path, lambda line: None)
    suggested = search.suggest("t")
    assert isinstance(suggested, dict)
    config = run_config(json.loads(suggested["run_json"]))
    search.on_trial_complete("t", {"rows": no_op_rows(config, STUDY.gate_thresholds, "s")})
    trials = optuna.load_study(study_name="s", storage=study_storage(tmp_path)).trials
    name = "adapter.gate_threshold if adapter=grun"
    own, *others = [json.loads(trial.params[name]) for trial in trials]
    assert set(others) == {0.25, 0.5} - {own}


def test_a_damaged_line_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value of the second of three trials cannot be read: the trials are all there, that value is not."""
    study = optuna.create_study(study_name="s", storage=study_storage(tmp_path))
    for number in range(3):
        study.ask().set_user_attr(RUN_KEY, f"key{number}")
    journal = tmp_path / "studies.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    (at,) = [place for place, line in enumerate(lines) if b"key1" in line]
    lines[at] = lines[at][:20] + b"\x00\xff\n"
    journal.write_bytes(b"".join(lines))
    trials = optuna.load_study(study_name="s", storage=study_storage(tmp_path)).trials
    assert [trial.user_attrs.get(RUN_KEY) for trial in trials] == ["key0", None, "key2"]
    assert (tmp_path / "studies.damaged").read_bytes() == lines[at]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"{journal}: 1 damaged lines of {len(lines)} set aside"]


def test_nothing_is_taken_for_a_trial_whose_beginning_is_lost(tmp_path: Path) -> None:
    """The second trial's first line is damaged: Optuna would call the third one the second. What was before is kept."""
    study = optuna.create_study(study_name="s", storage=study_storage(tmp_path))
    for number in range(3):
        study.ask().set_user_attr(RUN_KEY, f"key{number}")
    journal = tmp_path / "studies.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    creations = [place for place, line in enumerate(lines) if json.loads(line)["op_code"] == 4]
    lines[creations[1]] = b"{\n"
    journal.write_bytes(b"".join(lines))
    reopened = optuna.load_study(study_name="s", storage=study_storage(tmp_path))
    assert [trial.user_attrs.get(RUN_KEY) for trial in reopened.trials] == ["key0"]
    reopened.ask()
    assert len(optuna.load_study(study_name="s", storage=study_storage(tmp_path)).trials) == 2


def test_a_study_is_more_than_its_name(tmp_path: Path) -> None:
    """Another base or another space under the same name is refused with what differs; a budget may grow."""
    StudySearch([STUDY], tmp_path, lambda line: None)
    StudySearch([replace(STUDY, num_trials=5, gate_thresholds=(0.1,))], tmp_path, lambda line: None)
    other = replace(STUDY, base={"benchmark": {"forget_split": "forget50"}})
    with pytest.raises(
        UserError, match=r'study: s was begun with benchmark.forget_split "forget20", not "forget50"; re'
    ):
        StudySearch([other], tmp_path, lambda line: None)
    ranks = Categorical(type="categorical", choices=(2, 8))
    wider = replace(STUDY, search_space={**STUDY.search_space, "adapter.rank": (ranks,)})
    with pytest.raises(UserError, match=r"s was begun with search_space.adapter.rank .* rename the study"):
        StudySearch([wider], tmp_path, lambda line: None)


def test_what_makes_no_run_is_not_drawn_again(tmp_path: Path) -> None:
    """A trial cut off by an invalid draw has parameters and no run: the next process must not begin with it."""
    _crashed(tmp_path, rows_written=0, keyed=False)
    _, trials = _reopened(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.FAIL]


@pytest.mark.parametrize(("table", "threshold"), [("runs", None), ("items", None), ("runs", 0.95)])
def test_a_finished_trial_whose_rows_are_damaged_is_done_again(
    tmp_path: Path, table: str, threshold: float | None
) -> None:
    """One of two trainings, its row, its items or its row at a threshold beside the range: one training is left, of the
    same parameters, however often the sweep is begun; afterwards the budget of two is used up, not one of three."""

    def finish(search: StudySearch, trial: str) -> RunConfig:
        suggested = search.suggest(trial)
        assert isinstance(suggested, dict)
        config = run_config(json.loads(suggested["run_json"]))
        rows = no_op(config, Execution(results=tmp_path), gate_thresholds=STUDY.gate_thresholds, study="s")
        search.on_trial_complete(trial, {"rows": rows})
        return config

    ranks = [{"adapter.rank": 2}, {"adapter.rank": 4}]  # else both could have one row at 0.95
    first = StudySearch([replace(STUDY, initial_points=ranks)], tmp_path, lambda line: None)
    config, _ = finish(first, "a"), finish(first, "b")
    own = next(run for run in at_thresholds(config, STUDY.gate_thresholds) if threshold in (None, _threshold(run)))
    file = tmp_path / table / f"{own.run_key}.parquet"
    file.write_bytes(file.read_bytes()[:-7])
    said: list[str] = []
    StudySearch([STUDY], tmp_path, said.append)
    assert said == [
        "s: 2 of 2 trainings are done already",
        "s: 1 of them left rows that are damaged, and are done again",
    ]
    again, trials = _reopened(tmp_path)
    assert again.num_trials_left == 1
    assert len([trial for trial in trials if trial.state == TrialState.WAITING]) == 1
    assert finish(again, "c") == config
    assert store.read_run(tmp_path, own.run_key) is not None
    assert _reopened(tmp_path)[0].num_trials_left == 0


def _threshold(run: RunConfig) -> float:
    return run.adapter.gate_threshold  # type: ignore[union-attr]


def test_what_makes_up_for_damage_may_be_cut_off_too(tmp_path: Path) -> None:
    """A process dies while it does a training again: the next one does just that, and no trial beside it."""
    search = StudySearch([replace(STUDY, num_trials=1)], tmp_path, lambda line: None)
    suggested = search.suggest("t")
    assert isinstance(suggested, dict)
    config = run_config(json.loads(suggested["run_json"]))
    rows = no_op(config, Execution(results=tmp_path), gate_thresholds=STUDY.gate_thresholds, study="s")
    search.on_trial_complete("t", {"rows": rows})
    (tmp_path / "runs" / f"{config.run_key}.parquet").write_bytes(b"PAR1")
    for _ in range(2):
        search = StudySearch([replace(STUDY, num_trials=1)], tmp_path, lambda line: None)
        assert search.num_trials_left == 1
        suggested = search.suggest("t")  # and nothing more is heard of it
        assert isinstance(suggested, dict)
        assert run_config(json.loads(suggested["run_json"])) == config


def test_what_is_under_way_counts_among_a_studys_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies of 100 seconds, three workers. While a trial of each is under way a third is begun after 60 s, of the
    study that is furthest from its end; after 120 none, though none has ended; then each has had what it has."""
    now = [0.0]
    monkeypatch.setattr("bench.studies.search.time.perf_counter", lambda: now[0])
    store.create(tmp_path)
    studies = [replace(STUDY, study=name, num_trials=4, gate_thresholds=()) for name in ("a", "b")]
    search = StudySearch(studies, tmp_path, lambda line: None, Pool(seconds_per_study=100.0))
    under_way: dict[str, dict[str, Any]] = {}

    def ask(trial: str) -> str | None:
        suggested = search.suggest(trial)
        if not isinstance(suggested, dict):
            return suggested
        under_way[trial] = suggested
        return str(suggested["study"])

    assert [ask("t0"), ask("t1")] == ["a", "b"]
    now[0] = 60.0
    assert ask("t2") == "a"
    now[0] = 120.0
    assert ask("t3") is None
    for trial, suggested in under_way.items():
        (row,) = no_op_rows(run_config(json.loads(suggested["run_json"])), (), suggested["study"])
        search.on_trial_complete(trial, {"rows": [row | {"train_seconds": 110.0, "eval_seconds": 10.0}]})
    assert ask("t4") == StudySearch.FINISHED
    assert search.num_trials_left == 3


def test_a_study_ends_by_its_seconds_those_of_earlier_commands_included(tmp_path: Path) -> None:
    """Two studies of 10 trials, 100 seconds each. A trial of `slow` trains 40 s and evaluates four thresholds of 5 s:
    60. One of `fast` takes 4 + 4 x 1.5 = 10.

    After a slow and a fast one the pace is 70 s in as many; 40 + 90 are to spend: as long again as 130 / 70 of what
    went by. The next command knows of both: `slow` may begin one more (60 < 100), then none (120); `fast` nine.
    """
    rates = {"adapter.learning_rate": (FloatRange(type="float", low=1e-3, high=1e-2),)}  # no two share a module
    studies = [replace(STUDY, study=name, num_trials=10, search_space=rates) for name in ("slow", "fast")]
    costs = {"slow": (40.0, 5.0), "fast": (4.0, 1.5)}

    def opened() -> StudySearch:
        return StudySearch(studies, tmp_path, lambda line: None, Pool(seconds_per_study=100))

    def finish(search: StudySearch) -> str | None:
        suggested = search.suggest("t")
        if not isinstance(suggested, dict):
            return None
        name = suggested["study"]
        train, evaluate = costs[name]
        rows = no_op_rows(run_config(json.loads(suggested["run_json"])), STUDY.gate_thresholds, name)
        for row in rows:
            row |= {"train_seconds": train, "eval_seconds": evaluate}
            store.write_run(tmp_path, row)
        search.on_trial_complete("t", {"rows": rows})
        return str(name)

    first = opened()
    assert [finish(first), finish(first)] == ["slow", "fast"]
    assert first._seconds_left(elapsed=7.0) == pytest.approx(13.0)
    second = opened()
    assert second.num_trials_left == 9 + 9
    began = list(iter(lambda: finish(second), None))
    assert sorted(began) == ["fast"] * 9 + ["slow"]
    assert second.num_trials_left == len(began)
    assert opened().num_trials_left == 0
