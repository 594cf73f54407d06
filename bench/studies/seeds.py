"""How sure is the table of methods? Each method's best run again, with other seeds: mean ± standard deviation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench.config import overlay, run_config
from bench.reports.comparison import Comparison
from bench.reports.table import Best, best_runs, methods_table
from bench.results import store
from bench.results.settings import is_log, setting
from bench.results.storage import Folder, Location
from bench.runs.execution import Execution
from bench.runs.related import prerequisites
from bench.spaces.parameters import Categorical
from bench.spaces.search_space import SweepConfig
from bench.studies.pool import Pool
from bench.studies.sweep import sweep

Row = dict[str, Any]


def repeat_best(
    comparison: Comparison, best: Best, num_seeds: int, execution: Execution, pool: Pool, log: Callable[[str], None]
) -> list[Row]:
    """Train each method's best run (its balanced one where none keeps the utility) with num_seeds seeds, attacked as
    it was, by default where it was not.

    What another tool logged stands as it is: nothing of it can be run again.
    best: by which score. execution.results: the folder that was compared. Returns the rows of these runs and of their
    references: what an earlier command chose otherwise lies in the same folder.
    Raises UserError where no method has one.
    """
    chosen = best_runs(comparison, execution.folder, best)
    logged = [row for row in chosen if is_log(row["config_json"])]
    studies = [_study(row, comparison, num_seeds) for row in chosen if row not in logged]
    if not studies:
        return comparison.references + logged
    there = replace(execution, results=execution.folder / store.SEEDS)
    for study in studies:
        _take_over(study, execution.folder, there.folder)
    sweep(studies, there, pool, log)
    repeated = {study.run(point).run_key for study in studies for point in study.initial_points}
    rows = store.scan_runs(there.results).filter(status="ok").to_dicts()
    same = setting(studies[0].run({}).to_json())
    references = [row for row in rows if row["adapter"] == "none" and setting(row["config_json"]) == same]
    return [*references, *(row for row in rows if row["run_key"] in repeated), *logged]


def _take_over(study: SweepConfig, results: Folder, seeds: Location) -> None:
    """What was attacked when it was compared, and what that is measured with, stands among the seeds as it is."""
    runs = [study.run(point) for point in study.initial_points]
    for config in (*runs, *prerequisites(runs[0])):
        row = store.read_run(results, config.run_key)
        if row is not None and store.read_run(seeds, config.run_key) is None:
            named = {"study": study.study} if config in runs else {}
            store.write_run(seeds, row | named, store.read_items(results, config.run_key) or ())


def _study(chosen: Row, comparison: Comparison, num_seeds: int) -> SweepConfig:
    config = run_config(json.loads(chosen["config_json"]))
    is_attacked = config.evaluation.robustness is not None or "forget" not in config.benchmark.splits
    attacks: Row = {} if is_attacked else {"evaluation.robustness": {}}
    base = overlay(config.to_dict(), attacks)
    if config.external is not None:
        num_seeds = 1  # it was trained elsewhere, and is what it is
    seeds = range(base["seed"], base["seed"] + num_seeds)
    return SweepConfig(
        study=f"seeds/{chosen['run_key']}/{num_seeds}",
        base=run_config(base).to_dict(),
        search_space={"seed": (Categorical(type="categorical", choices=tuple(seeds)),)},
        objectives=comparison.objectives,
        num_trials=num_seeds,
        initial_points=[{"seed": seed} for seed in seeds],
        sampler="random",
    )


def write_table(file: Location, rows: Sequence[Row], command: str) -> None:
    """`methods_table` of the rows, below the command that made it."""
    file.write("\n".join([f"```sh\n{command}\n```\n", *methods_table(rows), ""]).encode())
