"""Which metrics to trust: models that know the forget set or not, and unlearned ones that are attacked, on Ray.

Meta-evaluation of arXiv 2506.12618. Each model is an ordinary run with rows of its own in RESULTS/metrics, so that a
command which was cut off goes on, and `rescore` brings all of it up to date.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.cluster.connect import connected
from bench.config import RunConfig, overlay, run_config
from bench.evaluation.score import score
from bench.models.prepare import StartFrom, forget_lessons
from bench.reports.comparison import Comparison, Row
from bench.reports.judged import UTILITY_KEPT, Measured, Verdict, judge
from bench.results import store
from bench.results.columns import METRICS
from bench.results.storage import Location
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import failed_row
from bench.runs.run import run
from bench.studies.pool import Pool, place, study_locks
from bench.studies.seeds import best_of
from bench.studies.sweep import make_prerequisites
from bench.studies.tasks import Log, Tasks
from grun.errors import UserError

FOLDER = "metrics"
"""Folder under RESULTS that holds these runs: of other recipes than the ones compared."""
KNOWING: tuple[StartFrom, ...] = ("target_model", "paraphrased_model")
"""What has been taught the forget set: as it is, or in other words."""
IGNORANT: tuple[StartFrom, ...] = ("retain_model", "mistaught_model")
"""What has not: nothing in its place, or wrong answers."""
RECIPES = tuple(itertools.product((1.0, 0.5), (1.0, 0.3, 0.5, 0.7, 1.4)))
"""Shares of the epochs and of the learning rate by which the model itself is taught, which is the first."""
AFTER = (None, "relearning", "4_bit")


@dataclass(frozen=True, kw_only=True)
class Models:
    """All runs that metrics are judged by."""

    knowing: Sequence[RunConfig]
    ignorant: Sequence[RunConfig]
    references: Sequence[RunConfig]
    """The retain model that unlearned models are measured with, then they themselves."""

    @property
    def runs(self) -> list[RunConfig]:
        """Each once; the references as they are, and after each attack."""
        attacked = [_after(config, after) for config in self.references for after in AFTER]
        return list({each.run_key: each for each in (*self.knowing, *self.ignorant, *attacked)}.values())


def judge_metrics(comparison: Comparison, num_models: int, execution: Execution, pool: Pool, log: Log) -> list[Verdict]:
    """Train and measure what is not there yet, then judge every metric of the forget set.

    execution.results: the folder that was compared; each method's best run is unlearned anew, and attacked. num_models:
    in each of the two groups.
    Raises UserError where no method has a run, or the model cannot be taught here.
    """
    chosen = [row for row in map(best_of, comparison.methods) if row]
    if not chosen:
        raise UserError("RESULTS", f"{execution.folder} holds no finished run of a method; run a sweep first")
    there = replace(execution, results=execution.folder / FOLDER)
    models = _models(chosen, num_models)
    store.create(there.folder)
    with study_locks([FOLDER], there.folder), connected(log):
        at_once, worker = place(pool, there)
        make_prerequisites(models.runs, worker, log, at_once)
        missing = [each for each in models.runs if store.read_run(there.folder, each.run_key) is None]
        tasks = Tasks(worker, log, at_once)
        for number, config in enumerate(missing, start=1):
            tasks.add(_measure, config, worker, f"{number} of {len(missing)}")
        tasks.wait()
    return _judged(models, there.folder)


def _models(chosen: Sequence[Row], num_models: int) -> Models:
    """chosen: rows of the runs that are attacked, all of one benchmark, model and evaluation."""
    unlearned = [run_config(overlay(json.loads(row["config_json"]), {"evaluation.robustness": {}})) for row in chosen]
    base = unlearned[0]
    if base.model.fine_tuning.num_epochs == 0:
        raise UserError("model.fine_tuning.num_epochs", "is 0; metrics are judged by models that are taught here")
    benchmark = base.benchmark.load()

    def taught(kinds: Sequence[StartFrom]) -> list[RunConfig]:
        first, second = kinds
        try:
            forget_lessons(benchmark, second)
        except UserError:  # no such answers: the other kind alone
            kinds = (first,)
        return [_taught(base, kinds[number % len(kinds)], number // len(kinds)) for number in range(num_models)]

    return Models(
        knowing=taught(KNOWING),
        ignorant=taught(IGNORANT),
        references=[prerequisite(base, "retain_model"), *unlearned],
    )


def _taught(base: RunConfig, kind: StartFrom, number: int) -> RunConfig:
    """A model by the recipe of that number, whose seed is its own; the first is the one of `base`."""
    own = base.model.fine_tuning
    epochs, rate = RECIPES[number % len(RECIPES)]
    recipe = {
        "model.fine_tuning.seed": own.seed + number,
        "model.fine_tuning.num_epochs": max(1, round(epochs * own.num_epochs)),
        "model.fine_tuning.learning_rate": rate * own.learning_rate,
    }
    return prerequisite(run_config(overlay(base.to_dict(), recipe)), kind)


def _after(config: RunConfig, after: Any) -> RunConfig:
    return replace(config, evaluation=replace(config.evaluation, after=after))


def _measure(config: RunConfig, execution: Execution, count: str, say: Log) -> None:
    """In a worker. An error is a row of `runs` and a line: the other models are judged by nonetheless."""
    what = " after ".join(filter(None, (config.method, config.evaluation.after)))
    try:
        (row,) = run(config, replace(execution, save_module=config.adapter.is_small))
    except Exception as error:
        row = failed_row(config, error, None)
        store.write_run(execution.folder, row)
        say(f"{count}: {what}: failed: {row['error']}")
        return
    say(f"{count}: {what}: ES {row['forget_extraction_strength']}, ROUGE-L {row['forget_rouge_l_recall']}")


def _judged(models: Models, folder: Location) -> list[Verdict]:
    """Verdicts from the rows that are there.

    Forget quality and privleak of the groups are measured anew with the retain model that the unlearned models have:
    their own rows have the one of their own recipe, which is itself among them.
    """
    gold = store.read_items(folder, models.references[0].run_key)

    def scored(group: Sequence[RunConfig]) -> list[Any]:
        items = [store.read_items(folder, each.run_key) for each in group]
        return [dict.fromkeys(METRICS) | score(each, gold, 0.0) for each in items if each]

    def measured(config: RunConfig) -> Measured:
        rows = {after or "before": store.read_run(folder, _after(config, after).run_key) for after in AFTER}
        return {when: row for when, row in rows.items() if row}  # type: ignore[misc]

    retain, *unlearned = models.references
    target = store.read_run(folder, prerequisite(retain, "target_model").run_key)
    assert target is not None, "it was measured first"
    utility = "partial_model_utility" if target["model_utility"] is None else "model_utility"
    kept = []
    for config in unlearned:
        found = measured(config)
        if "before" in found and (found["before"][utility] or 0.0) >= UTILITY_KEPT * (target[utility] or 0.0):
            kept.append((config, found))
    kinds = {
        "all": [found for _, found in kept],
        "gated": [found for config, found in kept if config.adapter.is_gated],
    }
    return judge(scored(models.knowing), scored(models.ignorant), measured(retain), kinds)
