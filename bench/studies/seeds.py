"""How sure is the table of methods? Each method's best run again, with other seeds: mean ± standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.config import overlay, run_config
from bench.reports.comparison import Comparison, MethodSummary
from bench.results import store
from bench.results.storage import Location
from bench.runs.execution import Execution
from bench.spaces.parameters import Categorical
from bench.spaces.search_space import SweepConfig
from bench.studies.pool import Pool
from bench.studies.sweep import sweep

Row = dict[str, Any]
FOLDER = "seeds"
"""Folder under RESULTS that holds the repeated runs: they are no trials, and must not be counted as such."""
COLUMNS = {
    "log10_forget_quality": "log10 forget quality",
    "utility": "model utility",
    "forget_rouge_l_recall": "forget ROUGE-L",
    "retain_rouge_l_recall": "retain ROUGE-L",
    "forget_extraction_strength": "forget ES",
    "mia_min_k_auc": "MIA min-k AUC",
    "forget_relearned_rouge_l_recall": "relearned ROUGE-L",
    "forget_paraphrased_question_rouge_l_recall": "paraphrased ROUGE-L",
    "trainable_parameters": "trainable",
    "train_seconds": "train s",
}
"""Columns of the table, and their headings."""


def repeat_best(
    comparison: Comparison, num_seeds: int, execution: Execution, pool: Pool, log: Callable[[str], None]
) -> list[Row]:
    """Train each method's best run (its balanced one where none keeps the utility) with num_seeds seeds, attacks on.

    execution.results: the folder that was compared. Returns the rows of all repeated runs and their references.
    """
    studies = [_study(chosen, comparison, num_seeds) for chosen in map(best_of, comparison.methods) if chosen]
    there = replace(execution, results=execution.folder / FOLDER)
    sweep(studies, there, pool, log)
    return store.scan_runs(there.results).filter(status="ok").to_dicts()


def best_of(summary: MethodSummary) -> Row | None:
    """The run that stands for a method."""
    return summary.best or summary.recommended


def _study(chosen: Row, comparison: Comparison, num_seeds: int) -> SweepConfig:
    base = overlay(json.loads(chosen["config_json"]), {"evaluation.robustness": {}})
    seeds = range(base["seed"], base["seed"] + num_seeds)
    return SweepConfig(
        study=f"seeds/{chosen['run_key']}",
        base=run_config(base).to_dict(),
        search_space={"seed": (Categorical(type="categorical", choices=tuple(seeds)),)},
        objectives=comparison.objectives,
        num_trials=num_seeds,
        initial_points=[{"seed": seed} for seed in seeds],
        sampler="random",
    )


def write_table(file: Location, rows: Sequence[Row], utility: str, command: str) -> None:
    """A Markdown table: one line a method, the target and the retain model first.

    utility: `model_utility`, or the partial one. command: what made the table, written above it.
    """
    file.write(("\n".join(_lines(rows, utility, command)) + "\n").encode())


def _lines(rows: Sequence[Row], utility: str, command: str) -> Iterator[str]:
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row | {"utility": row[utility]})
    references = [name for name in ("target_model", "retain_model") if name in by_method]
    methods = sorted(set(by_method) - set(references), key=lambda name: _mean(by_method[name], "forget_rouge_l_recall"))
    yield "```sh"
    yield command
    yield "```"
    yield ""
    yield "| method | seeds | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|--:|" + "--:|" * len(COLUMNS)
    for name in [*references, *methods]:
        own = by_method[name]
        yield f"| {name} | {len(own)} | " + " | ".join(_cell(own, column) for column in COLUMNS) + " |"


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    return statistics.mean(row[column] for row in rows)


def _cell(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    values = [row[column] for row in rows if row[column] is not None]
    if not values:
        return ""
    mean = statistics.mean(values)
    if column == "trainable_parameters":
        return f"{mean:,.0f}"
    digits = 1 if column == "train_seconds" else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"
