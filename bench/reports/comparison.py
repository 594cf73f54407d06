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
from bench.metrics.rows import grouped
from bench.pareto import Floats
from bench.results import store
from bench.results.columns import SCORES, check_objectives
from bench.results.settings import Whole, check_one_setting, chosen_rows, is_log
from bench.results.storage import Folder, Location
from bench.splits import COSTS, Direction

UTILITY_KEPT = 0.95
"""A method's best runs keep at least this share of the target model's utility, where nothing else is asked for."""
FORGOTTEN = "forget_rouge_l_recall"
QUALITIES = ("forget_quality", "log10_forget_quality")
"""Scores of forgetting where more is better; of all others less is, and more is of what is kept."""
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
    """Least forget ROUGE-L among runs that keep the target's utility; None where no run does."""
    best_quality: Row | None
    """Highest forget quality among them, the least forget ROUGE-L of equals; None where it was not measured."""
    recommended: Row | None
    """The front's knee: the balanced choice."""


@dataclass(frozen=True, kw_only=True)
class Corners:
    """What hypervolumes are measured between, objective by objective."""

    worst: list[float | None]
    """None where an objective has no worst value of its own."""
    best: list[float] | None
    """The retain model's; None where it, or one of its scores, is missing."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that the page and the tables say."""

    title: str
    """Benchmark, forget split and model."""
    objectives: Mapping[str, Direction]
    corners: Corners
    runs: list[Row]
    """Finished runs with a method and every objective, without the target and the retain model."""
    front: list[Row]
    """Runs that no run of any method beats."""
    hypervolume: float | None
    """As a share of the box between the corners, so that 1 is what the retain model reaches; without a retain model, in
    the objectives' own units. None where the worst corner lacks a value: one taken from the runs seen would move with
    every further run."""
    methods: list[MethodSummary]
    target_model: Row | None
    retain_model: Row | None
    utility: str
    """`model_utility`, or `partial_model_utility` where the benchmark lacks splits."""
    utility_kept: float
    """Share of the target's utility that a method's best runs keep."""
    num_damaged: int
    """Files that could not be read and were left out."""
    num_unscored: int
    """Finished runs that lack an objective, and so stand nowhere."""

    @property
    def references(self) -> list[Row]:
        """The target and the retain model's rows, where there are any."""
        return [row for row in (self.target_model, self.retain_model) if row is not None]

    @property
    def says_best(self) -> bool:
        """Whether methods have a `best` run here: WMDP has no utility, and MUSE no split called forget."""
        target = self.target_model
        return target is not None and None not in (target[self.utility], target[FORGOTTEN])


def compare(
    results_folder: Folder,
    objectives: Mapping[str, Direction] | None = None,
    where: Mapping[str, str] | None = None,
    utility_kept: float = UTILITY_KEPT,
    whole: Whole = json.loads,
) -> Comparison:
    """Fronts over all finished runs of the folder, overall and by method.

    objectives: metric → max or min; None: the benchmark's own.
    where: column, or dotted key of a config, → value: to choose among benchmarks, models or data.
    utility_kept: share of the target's utility that a method's best runs keep.
    whole: a run's config_json → all its settings, for what `where` names and is not written down.
    Raises UserError where a name is unknown, nothing is left, or what is left cannot be compared.
    """
    rows = chosen_rows(results_folder, where or {}, whole)
    check_one_setting(row["config_json"] for row in rows)
    if objectives is None:
        names = default_objectives(rows[0]["benchmark"], rows[0]["forget_split"])
        objectives = {name: SCORES[name].better or "max" for name in names}
    check_objectives("--objectives", objectives)
    finished = [row for row in rows if row["status"] == "ok"]
    references = {row["method"]: row for row in finished if row["adapter"] == "none"}
    target = references.get("target_model")
    utility = utility_of(target)
    scored = [row for row in finished if row["adapter"] != "none" and _is_scored(row, objectives)]
    floor = _log10_floor(results_folder, [*scored, *references.values()])
    corners = _corners(objectives, floor, target, references.get("retain_model"))
    by_method = grouped(rows, "method").values()
    least = None if target is None or target[utility] is None else utility_kept * target[utility]
    methods = [_summary(own, objectives, corners, utility, least) for own in by_method if own[0]["adapter"] != "none"]
    return Comparison(
        title=f"{rows[0]['benchmark']} {rows[0]['forget_split']}, {rows[0]['model']}",
        objectives=objectives,
        corners=corners,
        runs=scored,
        front=_front(scored, objectives),
        hypervolume=_hypervolume(scored, objectives, corners),
        methods=sorted(methods, key=lambda summary: -(summary.hypervolume or 0.0)),
        target_model=target,
        retain_model=references.get("retain_model"),
        utility=utility,
        utility_kept=utility_kept,
        num_damaged=len(store.damaged_files(results_folder)),
        num_unscored=sum(row["adapter"] != "none" for row in finished) - len(scored),
    )


def utility_of(target: Row | None) -> str:
    """Which column is the utility, by the target model's row: its benchmark may lack splits."""
    return "partial_model_utility" if target and target["model_utility"] is None else "model_utility"


def _is_scored(row: Row, objectives: Mapping[str, Direction]) -> bool:
    return all(row[name] is not None and math.isfinite(row[name]) for name in objectives)


def _summary(
    rows: Sequence[Row],
    objectives: Mapping[str, Direction],
    corners: Corners,
    utility: str,
    least: float | None,
) -> MethodSummary:
    """One method's rows, failed ones included. least: utility that its best runs have; None: there is no such."""
    scored = [row for row in rows if row["status"] == "ok" and _is_scored(row, objectives)]
    front = _front(scored, objectives)
    kept = [row for row in scored if least is not None and row[utility] >= least and row[FORGOTTEN] is not None]
    judged = [row for row in kept if row["log10_forget_quality"] is not None]
    return MethodSummary(
        method=rows[0]["method"],
        num_runs=len(scored),
        num_failed=sum(row["status"] != "ok" for row in rows),
        front=front,
        hypervolume=_hypervolume(scored, objectives, corners),
        best=min(kept, key=lambda row: row[FORGOTTEN], default=None),
        best_quality=max(judged, key=lambda row: (row["log10_forget_quality"], -row[FORGOTTEN]), default=None),
        recommended=front[pareto.knee(_values(front, objectives), list(objectives.values()))] if front else None,
    )


def _corners(
    objectives: Mapping[str, Direction], log10_floor: float | None, target: Row | None, retain: Row | None
) -> Corners:
    """The box of hypervolumes: to the retain model; from the target in what tells of forgetting, else from the worst.

    log10_floor: the least log10_forget_quality possible for the benchmark's forget set.
    """
    best = [retain[name] for name in objectives] if retain is not None and _is_scored(retain, objectives) else None
    worst = []
    for name, way in objectives.items():
        metric = {**SCORES, **COSTS}[name]
        low = log10_floor if name == "log10_forget_quality" else metric.low
        bound = low if way == "max" else metric.high
        if best is not None and target is not None and (way == "min" or name in QUALITIES) and name not in COSTS:
            bound = target[name]
        worst.append(bound)
    return Corners(worst=worst, best=best)


def _hypervolume(rows: Sequence[Row], objectives: Mapping[str, Direction], corners: Corners) -> float | None:
    worst = [value for value in corners.worst if value is not None]
    if len(worst) < len(corners.worst):
        return None
    values, ways = _values(rows, objectives), list(objectives.values())
    if corners.best is None:
        return pareto.hypervolume(values, ways, worst)
    # Past the retain model there is nothing to win: what knows less than a model that never knew gives itself away.
    best = np.array(corners.best)
    values = np.where([way == "max" for way in ways], np.minimum(values, best), np.maximum(values, best))
    box = float(np.prod(np.abs(best - np.array(worst))))
    return pareto.hypervolume(values, ways, worst) / box if box else None


def write_front_configs(comparison: Comparison, folder: Location) -> dict[str, Location]:
    """One RunConfig YAML for each point of each method's front, ready for `grun-bench train`; by run_key.

    None of another tool's log, which nobody can run. Those of an earlier front are taken away: nobody could tell them
    from these.
    """
    for file in folder.files(".yaml"):
        file.remove()
    written = {}
    for summary in comparison.methods:
        runs = [row for row in summary.front if not is_log(row["config_json"])]
        for number, row in enumerate(runs, start=1):
            path = folder / f"{summary.method}-{number:02d}.yaml"
            path.write(yaml_text(json.loads(row["config_json"])).encode())
            written[row["run_key"]] = path
    return written


def as_json(comparison: Comparison) -> str:
    """`{objectives, reference_point, ideal_point, hypervolume, front, per_method}`, for other programs."""

    def point(row: Row) -> Row:
        kept = {name: row[name] for name in ("run_key", "method", *comparison.objectives)}
        return {**kept, "config": json.loads(row["config_json"])}

    data = {
        "objectives": dict(comparison.objectives),
        "reference_point": comparison.corners.worst,
        "ideal_point": comparison.corners.best,
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


def _log10_floor(folder: Folder, rows: Sequence[Row]) -> float | None:
    """The least log10_forget_quality possible, from the size of the forget set that was evaluated; None: no such."""
    if not rows:
        return None
    items = store.scan_items(folder, [rows[0]["run_key"]])
    size = items.filter(pl.col("split") == "forget").height
    return log10_forget_quality_floor(size, size) if size else None
