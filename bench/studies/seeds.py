"""How sure is the table of methods? Each method's best run again, with other seeds: mean ± standard deviation."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from bench.benchmarks import HEADLINES
from bench.config import overlay, run_config
from bench.metrics.rows import grouped
from bench.reports.comparison import Comparison
from bench.results import store
from bench.results.columns import SCORES
from bench.results.settings import is_log, setting
from bench.results.storage import Location
from bench.runs.execution import Execution
from bench.spaces.parameters import Categorical
from bench.spaces.search_space import SweepConfig
from bench.splits import COSTS
from bench.studies.pool import Pool
from bench.studies.sweep import sweep
from grun.errors import UserError

Row = dict[str, Any]
Best = Literal["rouge_l", "quality"]
"""Which of a method's runs that keep the utility stands for it: that of the least forget ROUGE-L, or best quality."""
COLUMNS = (
    *HEADLINES,
    *("forget_extraction_strength", "forget_fluency", "mia_min_k_auc", "forget_paraphrased_question_rouge_l_recall"),
    *("false_openings", "no_set_openings", "trainable_parameters", "train_seconds"),
)
"""Columns of the table, where any run has them."""


def repeat_best(
    comparison: Comparison, best: Best, num_seeds: int, execution: Execution, pool: Pool, log: Callable[[str], None]
) -> list[Row]:
    """Train each method's best run (its balanced one where none keeps the utility) with num_seeds seeds, attacks on.

    What another tool logged stands as it is: nothing of it can be run again.
    best: by which score. execution.results: the folder that was compared. Returns the rows of these runs and of their
    references: what an earlier command chose otherwise lies in the same folder.
    Raises UserError where no method has one.
    """
    chosen = best_runs(comparison, execution.folder, best)
    logged = [row for row in chosen if is_log(row["config_json"])]
    studies = [_study(row, comparison, num_seeds) for row in chosen if row not in logged]
    if not studies:
        return [row for row in (comparison.target_model, comparison.retain_model) if row] + logged
    there = replace(execution, results=execution.folder / store.SEEDS)
    sweep(studies, there, pool, log)
    repeated = {study.run(point).run_key for study in studies for point in study.initial_points}
    rows = store.scan_runs(there.results).filter(status="ok").to_dicts()
    same = setting(studies[0].run({}).to_json())
    references = [row for row in rows if row["adapter"] == "none" and setting(row["config_json"]) == same]
    return [*references, *(row for row in rows if row["run_key"] in repeated), *logged]


def best_runs(comparison: Comparison, folder: Location, best: Best = "rouge_l") -> list[Row]:
    """The run that stands for each method of the folder that was compared. Raises UserError where no method has one."""
    chosen = [
        (summary.best_quality if best == "quality" else None) or summary.best or summary.recommended
        for summary in comparison.methods
    ]
    if not any(chosen):
        raise UserError("RESULTS", f"{folder} holds no finished run of a method; run a sweep first")
    return [row for row in chosen if row]


def _study(chosen: Row, comparison: Comparison, num_seeds: int) -> SweepConfig:
    config = run_config(json.loads(chosen["config_json"]))
    attacks: Row = {"evaluation.robustness": {}} if "forget" in config.benchmark.splits else {}
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
    """A Markdown table: one line a method, the one that forgets most first, the target and the retain model above.

    command: what made the table, written above it.
    """
    file.write(("\n".join(_lines(rows, command)) + "\n").encode())


def _lines(rows: Sequence[Row], command: str) -> Iterator[str]:
    by_method = grouped(rows, "method")
    columns = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    metrics = {name: {**SCORES, **COSTS}[name] for name in columns}
    known = next(name for name, metric in metrics.items() if metric.better == "min")  # the first to be forgotten
    scores = {name: [row[known] for row in own if row[known] is not None] for name, own in by_method.items()}
    left = {name: statistics.mean(own or [math.inf]) for name, own in scores.items()}
    references = [name for name in ("target_model", "retain_model") if name in by_method]
    yield f"```sh\n{command}\n```\n"
    yield "| method | seeds | " + " | ".join(metric.heading for metric in metrics.values()) + " |"
    yield "|---|--:|" + "--:|" * len(columns)
    for name in [*references, *sorted(set(by_method) - set(references), key=lambda method: left[method])]:
        own = by_method[name]
        yield f"| {name} | {len(own)} | " + " | ".join(_cell(own, column) for column in columns) + " |"


def _cell(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    values = [row[column] for row in rows if row[column] is not None]
    if not values:
        return ""
    mean = statistics.mean(values)
    if column == "trainable_parameters":
        return f"{mean:,.0f}"
    digits = 1 if column == "train_seconds" else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    lacking = f" ({len(values)} of {len(rows)})" if len(values) < len(rows) else ""
    return f"{mean:.{digits}f}{spread}{lacking}"
