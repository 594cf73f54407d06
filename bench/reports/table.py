"""The Markdown table of methods: a line for each one's best run, or for its repetitions with other seeds."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bench.benchmarks import HEADLINES
from bench.metrics.rows import grouped
from bench.reports.comparison import Comparison
from bench.results import store
from bench.results.columns import SCORES
from bench.results.storage import Location
from bench.splits import COSTS
from grun.errors import UserError

Row = dict[str, Any]
Best = Literal["rouge_l", "quality"]
"""Which of a method's runs that keep the utility stands for it: that of the least forget ROUGE-L, or best quality."""
COLUMNS = (
    *HEADLINES,
    *("forget_extraction_strength", "forget_fluency", "mia_min_k_auc", "forget_paraphrased_question_rouge_l_recall"),
    *("false_openings", "no_set_openings", "trainable_parameters", "train_seconds", "peak_memory_gb"),
)
"""Columns of the table, where any run has them."""


def best_runs(comparison: Comparison, folder: Location, best: Best = "rouge_l") -> list[Row]:
    """The run that stands for each method of the folder that was compared. Raises UserError where no method has one."""
    chosen = [
        (summary.best_quality if best == "quality" else None) or summary.best or summary.recommended
        for summary in comparison.methods
    ]
    if not any(chosen) and comparison.num_unscored:
        found, wanted = comparison.num_unscored, " or ".join(comparison.objectives)
        raise UserError("--objectives", f"{found} finished runs of {folder} lack {wanted}; name scores that they have")
    if not any(chosen):
        raise UserError("RESULTS", f"{folder} holds no finished run of a method; run a sweep first")
    return [row for row in chosen if row]


def repeated(comparison: Comparison, folder: Location) -> list[Row]:
    """The rows of a table: each method's best run as `grun-bench seeds` repeated it, or as it is where it was not.

    The target and the retain model come with the attacks that the repeated runs were put to, where there are any.
    Raises UserError where no method has a run.
    """
    there = folder / store.SEEDS
    again = store.scan_runs(there).filter(status="ok").to_dicts() if (there / "runs").files(".parquet") else []
    references = [row for row in again if row["adapter"] == "none"]
    rows = references or comparison.references
    for row in best_runs(comparison, folder):
        rows += [each for each in again if str(each["study"]).startswith(f"seeds/{row['run_key']}/")] or [row]
    return rows


def methods_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown: the method that forgets most first, the target and the retain model above."""
    by_method = grouped(rows, "method")
    columns = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    metrics = {name: {**SCORES, **COSTS}[name] for name in columns}
    known = next(name for name, metric in metrics.items() if metric.better == "min")  # the first to be forgotten
    scores = {name: [row[known] for row in own if row[known] is not None] for name, own in by_method.items()}
    left = {name: statistics.mean(own or [math.inf]) for name, own in scores.items()}
    references = [name for name in ("target_model", "retain_model") if name in by_method]
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
