"""Which metrics to trust: models that know the forget set or not, and unlearned ones that are attacked, on Ray.

Meta-evaluation of arXiv 2506.12618. Each model is an ordinary run with rows of its own in RESULTS/metrics, so that a
command which was cut off goes on, and `rescore` brings all of it up to date.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.cluster.connect import connected
from bench.config import RunConfig
from bench.evaluation.score import score
from bench.metaeval.models import AFTER, Models, after_attack, models_of
from bench.reports.comparison import Comparison, utility_of
from bench.reports.judged import UTILITY_KEPT, Measured, Verdict, judge
from bench.reports.table import best_runs
from bench.results import store
from bench.results.columns import METRICS
from bench.results.settings import is_log
from bench.results.storage import Location
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import failed_row
from bench.runs.run import run
from bench.studies.pool import Pool, place, study_locks
from bench.studies.sweep import headlines_of, make_prerequisites
from bench.studies.tasks import Log, Tasks
from grun.errors import UserError

FOLDER = "metrics"
"""Folder under RESULTS that holds these runs: of other recipes than the ones compared."""


def judge_metrics(comparison: Comparison, num_models: int, execution: Execution, pool: Pool, log: Log) -> list[Verdict]:
    """Train and measure what is not there yet, then judge every metric of the forget set.

    execution.results: the folder that was compared; each method's best run is unlearned anew, and attacked. num_models:
    in each of the two groups.
    Raises UserError where no method has a run, or the model cannot be taught here.
    """
    there = replace(execution, results=execution.folder / FOLDER)
    chosen = [row for row in best_runs(comparison, execution.folder) if not is_log(row["config_json"])]
    if not chosen:
        raise UserError("RESULTS", f"{execution.folder} holds logs of other tools alone, which cannot be attacked")
    models = models_of(chosen, num_models)
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
    say(f"{count}: {what}: {headlines_of(row)}")


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
        rows = {after or "before": store.read_run(folder, after_attack(config, after).run_key) for after in AFTER}
        return {when: row for when, row in rows.items() if row}  # type: ignore[misc]

    retain, *unlearned = models.references
    target = store.read_run(folder, prerequisite(retain, "target_model").run_key)
    assert target is not None, "it was measured first"
    utility = utility_of(target)
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
