"""Runs of one benchmark and model → fronts and a table of methods. Reads Parquet, imports no model code."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from bench import pareto
from bench.benchmarks import default_objectives
from bench.files import yaml_text
from bench.metrics.forget_quality import log10_forget_quality_floor
from bench.pareto import Floats
from bench.results import store
from bench.results.columns import SCORES, check_objectives
from bench.results.settings import as_text, check_one_setting, leaves
from bench.results.storage import Folder, Location
from bench.splits import COSTS, Direction
from grun.errors import UserError

UTILITY_KEPT = 0.95
"""The table's best run keeps at least this share of the target model's utility."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One line of the table of methods."""

    method: str
    num_runs: int
    num_failed: int
    front: list[Row]
    """Runs of this method that no other run of it beats, best first by the first objective."""
    hypervolume: float | None
    best: Row | None
    """Least forget ROUGE-L among runs that keep 95 % of the target's utility; None where no run does."""
    recommended: Row | None
    """The front's knee: the balanced choice."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that the page and the tables say."""

    title: str
    """Benchmark, forget split and model."""
    objectives: Mapping[str, Direction]
    reference_point: list[float | None]
    """The worst corner; None where an objective has no worst value of its own."""
    runs: list[Row]
    """Finished runs with a method and every objective, without the target and the retain model."""
    front: list[Row]
    """Runs that no run of any method beats."""
    hypervolume: float | None
    """None where the corner lacks a value: a corner taken from the runs seen would move with every further run."""
    methods: list[MethodSummary]
    target_model: Row | None
    retain_model: Row | None
    utility: str
    """`model_utility`, or `partial_model_utility` where the benchmark lacks splits."""
    num_damaged: int
    """Files that could not be read and were left out."""

    @property
    def says_best(self) -> bool:
        """Whether methods have a `best` run here: WMDP has no utility, and MUSE no split called forget."""
        target = self.target_model
        return target is not None and None not in (target[self.utility], target["forget_rouge_l_recall"])


def compare(
    results_folder: Folder, objectives: Mapping[str, Direction] | None = None, where: Mapping[str, str] | None = None
) -> Comparison:
    """Fronts over all finished runs of the folder, overall and by method.

    objectives: metric → max or min; None: the benchmark's own.
    where: column, or dotted key of a config, → value: to choose among benchmarks, models or data.
    Raises UserError where a name is unknown, nothing is left, or what is left cannot be compared.
    """
    rows = _chosen_rows(results_folder, where or {})
    check_one_setting(row["config_json"] for row in rows)
    if objectives is None:
        names = default_objectives(rows[0]["benchmark"], rows[0]["forget_split"])
        objectives = {name: SCORES[name].better or "max" for name in names}
    check_objectives("--objectives", objectives)
    finished = [row for row in rows if row["status"] == "ok"]
    references = {row["method"]: row for row in finished if row["adapter"] == "none"}
    target = references.get("target_model")
    utility = "partial_model_utility" if target and target["model_utility"] is None else "model_utility"
    scored = [row for row in finished if row["adapter"] != "none" and _is_scored(row, objectives)]
    corner = _reference_point(objectives, _log10_floor(results_folder, [*scored, *references.values()]))
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    methods = [
        _summary(own, objectives, corner, target, utility) for own in by_method.values() if own[0]["adapter"] != "none"
    ]
    return Comparison(
        title=f"{rows[0]['benchmark']} {rows[0]['forget_split']}, {rows[0]['model']}",
        objectives=objectives,
        reference_point=corner,
        runs=scored,
        front=_front(scored, objectives),
        hypervolume=_hypervolume(scored, objectives, corner),
        methods=sorted(methods, key=lambda summary: -(summary.hypervolume or 0.0)),
        target_model=target,
        retain_model=references.get("retain_model"),
        utility=utility,
        num_damaged=len(store.damaged_files(results_folder)),
    )


def _chosen_rows(results_folder: Folder, where: Mapping[str, str]) -> list[Row]:
    """Rows of all runs that `where` leaves, oldest first."""
    runs = store.scan_runs(results_folder)
    for column, value in where.items():
        if "." in column:
            settings = [as_text(leaves(json.loads(config)).get(column)) for config in runs["config_json"]]
            runs = runs.filter(pl.Series([setting == value for setting in settings], dtype=pl.Boolean))
            continue
        if column not in runs.columns:
            raise UserError("--where", f"runs have no column {column}; use one of {', '.join(runs.columns[:12])}, …")
        runs = runs.filter(pl.col(column).cast(pl.String) == value)
    if runs.is_empty():
        raise UserError("RESULTS", f"no run in {results_folder} matches; run a sweep, or change --where")
    return runs.sort("created_at").to_dicts()


def _is_scored(row: Row, objectives: Mapping[str, Direction]) -> bool:
    return all(row[name] is not None and math.isfinite(row[name]) for name in objectives)


def _summary(
    rows: Sequence[Row],
    objectives: Mapping[str, Direction],
    corner: Sequence[float | None],
    target: Row | None,
    utility: str,
) -> MethodSummary:
    """One method's rows, failed ones included."""
    scored = [row for row in rows if row["status"] == "ok" and _is_scored(row, objectives)]
    front = _front(scored, objectives)
    return MethodSummary(
        method=rows[0]["method"],
        num_runs=len(scored),
        num_failed=sum(row["status"] != "ok" for row in rows),
        front=front,
        hypervolume=_hypervolume(scored, objectives, corner),
        best=_best(scored, target, utility),
        recommended=front[pareto.knee(_values(front, objectives), list(objectives.values()))] if front else None,
    )


def _reference_point(objectives: Mapping[str, Direction], log10_floor: float | None) -> list[float | None]:
    """The worst value of each objective, by its own bounds.

    log10_floor: the least log10_forget_quality possible for the benchmark's forget set.
    """
    corner = []
    for name, way in objectives.items():
        metric = {**SCORES, **COSTS}[name]
        low = log10_floor if name == "log10_forget_quality" else metric.low
        corner.append(low if way == "max" else metric.high)
    return corner


def _hypervolume(
    rows: Sequence[Row], objectives: Mapping[str, Direction], corner: Sequence[float | None]
) -> float | None:
    worst = [value for value in corner if value is not None]
    if len(worst) < len(corner):
        return None
    return pareto.hypervolume(_values(rows, objectives), list(objectives.values()), worst)


def write_front_configs(comparison: Comparison, folder: Location) -> dict[str, Location]:
    """One RunConfig YAML for each point of each method's front, ready for `grun-bench train`; by run_key.

    Those of an earlier front are taken away: nobody could tell them from these.
    """
    for file in folder.files(".yaml"):
        file.remove()
    written = {}
    for summary in comparison.methods:
        for number, row in enumerate(summary.front, start=1):
            path = folder / f"{summary.method}-{number:02d}.yaml"
            path.write(yaml_text(json.loads(row["config_json"])).encode())
            written[row["run_key"]] = path
    return written


def as_json(comparison: Comparison) -> str:
    """`{objectives, reference_point, hypervolume, front, per_method}`, for other programs."""

    def point(row: Row) -> Row:
        kept = {name: row[name] for name in ("run_key", "method", *comparison.objectives)}
        return {**kept, "config": json.loads(row["config_json"])}

    data = {
        "objectives": dict(comparison.objectives),
        "reference_point": comparison.reference_point,
        "hypervolume": comparison.hypervolume,
        "front": [point(row) for row in comparison.front],
        "per_method": [
            {
                "method": summary.method,
                "num_runs": summary.num_runs,
                "num_failed": summary.num_failed,
                "hypervolume": summary.hypervolume,
                "front": [point(row) for row in summary.front],
                "recommended": summary.recommended["run_key"] if summary.recommended else None,
            }
            for summary in comparison.methods
        ],
    }
    return json.dumps(data, indent=2, allow_nan=False)


def _values(rows: Sequence[Row], objectives: Mapping[str, Direction]) -> Floats:
    return np.array([[row[name] for name in objectives] for row in rows], dtype=np.float64).reshape(-1, len(objectives))


def _front(rows: Sequence[Row], objectives: Mapping[str, Direction]) -> list[Row]:
    """Non-dominated rows, best first by the first objective."""
    kept = pareto.nondominated(_values(rows, objectives), list(objectives.values()))
    first, way = next(iter(objectives.items()))
    front = [row for row, keep in zip(rows, kept, strict=True) if keep]
    return sorted(front, key=lambda row: -row[first] if way == "max" else row[first])


def _best(rows: Sequence[Row], target: Row | None, utility: str) -> Row | None:
    if target is None or None in (target[utility], target["forget_rouge_l_recall"]):
        return None
    kept = [row for row in rows if row[utility] >= UTILITY_KEPT * target[utility]]
    return min(kept, key=lambda row: row["forget_rouge_l_recall"], default=None)


def _log10_floor(folder: Folder, rows: Sequence[Row]) -> float | None:
    """The least log10_forget_quality possible, from the size of the forget set that was evaluated; None: no such."""
    if not rows:
        return None
    items = store.scan_items(folder, [rows[0]["run_key"]])
    size = items.filter(pl.col("split") == "forget").height
    return log10_forget_quality_floor(size, size) if size else None
