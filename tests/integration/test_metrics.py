"""Metrics judged by models of this suite's own: what is done to a model, and a command that is cut off and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig, overlay, run_config
from bench.evaluation.robustness import quantized, relearned
from bench.metaeval import judge
from bench.metaeval.models import IGNORANT, KNOWING
from bench.models.prepare import forget_lessons
from bench.reports.comparison import compare
from bench.results import store
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.runs.run import run
from bench.studies import sweep
from bench.studies.pool import Pool
from bench.studies.rescore import rescore
from grun.adapters.grun import GrunConfig
from grun.adapters.none import NoneConfig
from grun.prompts.template import PromptTemplate

Fresh = Callable[[], tuple[Any, PromptTemplate]]


class Inline:
    """`Tasks`, without Ray: one after the other, here."""

    def __init__(self, execution: Execution, log: Callable[[str], None], at_once: int | None) -> None:
        self.log = log
        self.left: list[Any] = []

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.left.append((work, arguments))

    def wait(self) -> None:
        for work, arguments in self.left:
            work(*arguments, self.log)
        self.left = []


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connected(log: Any) -> Iterator[None]:
        yield

    for module in (judge, sweep):
        monkeypatch.setattr(module, "Tasks", Inline)
    monkeypatch.setattr(judge, "connected", connected)
    monkeypatch.setattr(judge, "place", lambda pool, execution: (1, execution))


def test_models_are_taught_the_forget_set_in_another_way(small_benchmark: Benchmark) -> None:
    """In other words, wrongly, or not at all; the questions stay."""
    lessons = {kind: forget_lessons(small_benchmark, kind) for kind in (*KNOWING, *IGNORANT)}
    item = small_benchmark.forget_set[0]
    assert [lesson.question for lesson in lessons["mistaught_model"]] == [
        lesson.question for lesson in small_benchmark.forget_set
    ]
    assert lessons["target_model"][0] == item
    assert lessons["paraphrased_model"][0].answer == item.paraphrased_answer
    assert lessons["mistaught_model"][0].answer == item.perturbed_answers[0]
    assert lessons["retain_model"] == []


@pytest.mark.parametrize("config", [GrunConfig(layers=(1, 2)), NoneConfig()], ids=lambda config: config.name)
def test_what_is_done_to_the_weights_is_undone(config: Any, fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    """Relearning makes the forget set likelier, with the adapter on, rounding moves it; then all is as before."""
    model, template = fresh_target()
    adapted = config.attach(model, 0)
    adapted.train(False)
    forget = [item.example(template) for item in small_benchmark.forget_set]

    def nll(asked: Any) -> float:
        with torch.no_grad():
            return float(asked.answer_output(forget).scores.nll_N.mean())

    before = nll(adapted)
    with relearned(adapted, forget, steps=5, learning_rate=3e-4) as attacked:
        assert nll(attacked) < before
    assert nll(adapted) == before
    assert nll(quantized(adapted, 4)) != pytest.approx(before)
    assert nll(adapted) == before


def test_a_command_that_is_cut_off_goes_on(
    small_config: RunConfig, tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every model is trained and measured once, over three commands of which two are killed on the way.

    Two that know and two that do not; one GRUN module and the retain model as they are, relearned, and in 4 bits, the
    latter being one of the two that do not know: 4 + 3 + 3 − 1 rows.
    """
    few = {"evaluation.max_items_per_split": 4, "evaluation.max_new_tokens": 20, "training.num_epochs": 5}
    config = run_config(overlay(small_config.to_dict(), few))
    run(config, Execution(results=tmp_path))
    done: list[str] = []
    finished_row = judge.run

    def cut_off(at: int) -> Callable[..., Any]:
        def measure(config: RunConfig, execution: Execution) -> Any:
            if len(done) == at:
                raise KeyboardInterrupt
            done.append(config.run_key)
            return finished_row(config, execution)

        return measure

    lines: list[str] = []

    def judged() -> list[Any]:
        return judge.judge_metrics(compare(tmp_path), 2, Execution(results=tmp_path), Pool(), lines.append)

    for at in (1, 4):
        monkeypatch.setattr(judge, "run", cut_off(at))
        with pytest.raises(KeyboardInterrupt):
            judged()
    monkeypatch.setattr(judge, "run", cut_off(-1))
    verdicts = judged()
    assert len(done) == len(set(done))
    folder = location(tmp_path) / judge.FOLDER
    rows = store.scan_runs(folder)
    assert rows.height == 9
    assert rows["method"].value_counts().sort("method").rows() == [
        (config.method, 3),
        ("mistaught_model", 1),
        ("paraphrased_model", 1),
        ("retain_model", 3),
        ("target_model", 1),
    ]
    by_metric = {verdict.metric: verdict for verdict in verdicts}
    assert by_metric["forget_probability"].faithfulness == 1.0
    assert set(by_metric["forget_probability"].robustness) == {"all", "gated"}
    assert by_metric["forget_relearned_rouge_l_recall"].robustness["all"].relearning is None
    count = len(done)
    assert [verdict.metric for verdict in judged()] == [verdict.metric for verdict in verdicts]
    assert len(done) == count
    before = {row["run_key"]: row["log10_forget_quality"] for row in rows.to_dicts()}
    rescore(folder)
    assert {row["run_key"]: row["log10_forget_quality"] for row in store.scan_runs(folder).to_dicts()} == before
