"""What the page can show of any run, as plain data: scores in columns, settings, gates, generations, repeated seeds."""

import json
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from bench.benchmarks import HEADLINES, SPLITS
from bench.metrics.rows import grouped
from bench.reports.comparison import Comparison, Row
from bench.reports.names import name_of, parts, rank
from bench.results import store
from bench.results.columns import SCORES
from bench.results.settings import is_log, leaves, setting
from bench.results.storage import Folder, location
from bench.splits import ATTACKS, COSTS

CHARACTERS = 2_400_000
"""At most so many of generations on the page, all runs together."""
LONGEST_GENERATION = 300
LEAST_EXAMPLES, MOST_EXAMPLES = 6, 24
"""Generations of a run: fewer, the more runs there are."""
GATE_BINS = 20
ROLES = ("forgotten", "kept", "stranger")
METRICS = {**SCORES, **COSTS}
OBJECTIVES = ("forget_rouge_l_recall", "log10_forget_quality", "model_utility", "partial_model_utility")
"""What comes first in a list of scores, after the objectives."""


def page_data(comparison: Comparison, folder: Folder) -> dict[str, Any]:
    """Everything of a comparison's runs. A run is a place in each list of `columns`, and in `runs`.

    The page holds every run's scores and settings, and a sample of generations: the same questions of every run.
    """
    rows = comparison.runs
    references = [row for row in (comparison.target_model, comparison.retain_model) if row is not None]
    first = dict.fromkeys((*comparison.objectives, *OBJECTIVES, *HEADLINES))
    measured = {name for name in METRICS if any(row[name] is not None for row in (*rows, *references))}
    names = [name for name in dict.fromkeys((*first, *METRICS)) if name in measured]
    asked, generations = _generations(rows, comparison.target_model, comparison.retain_model, folder)
    by_method = grouped(rows, "method")
    shared, own = _settings(by_method)
    gates = _gates([row["run_key"] for row in rows if row["gate_threshold"] is not None], folder)
    return {
        "results": shlex.quote(str(folder)),
        "objectives": dict(comparison.objectives),
        "first": len(measured & first.keys()),
        "metrics": {name: [METRICS[name].heading, METRICS[name].better] for name in names},
        "columns": {name: [_short(row[name]) for row in rows] for name in (*names, "gate_threshold")},
        "references": [
            {"name": name_of(row["method"]), "scores": {name: _short(row[name]) for name in names}}
            for row in references
        ],
        "methods": {method: _method(by_method[method][0]) for method in sorted(by_method, key=rank)},
        "shared": shared,
        "runs": [
            {
                "key": row["run_key"],
                "method": row["method"],
                "again": not is_log(row["config_json"]),
                "settings": own[row["run_key"]],
                "gates": gates.get(row["run_key"]),
                "said": generations.get(row["run_key"]),
            }
            for row in rows
        ],
        "questions": asked,
        "seeds": _seeds(rows, names, folder),
    }


def _method(row: Row) -> dict[str, Any]:
    """How it is written and drawn: its colour is by what is trained, its shape by the losses that train it."""
    if row["adapter"] == "external":
        return {"name": row["method"], "trained": "unlearned elsewhere", "loss": row["method"]}
    trained, *losses = parts(row["method"])
    return {"name": name_of(row["method"]), "trained": trained, "loss": " + ".join(losses) or "no loss"}


def _short(value: float | None) -> float | None:
    """Four digits: what a chart can show; None, too, of what is no number or infinite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _settings(by_method: Mapping[str, Sequence[Row]]) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """(method → settings that all its runs share, run_key → its other ones): dotted key → value, as YAML."""
    shared: dict[str, dict[str, str]] = {}
    own: dict[str, dict[str, str]] = {}
    for method, members in by_method.items():
        configs = {row["run_key"]: leaves(json.loads(row["config_json"])) for row in members}
        texts = {key: {name: _yaml(value) for name, value in config.items()} for key, config in configs.items()}
        common = set.intersection(*(set(config.items()) for config in texts.values()))
        shared[method] = dict(sorted(common))
        own |= {key: dict(sorted(config.items() - common)) for key, config in texts.items()}
    return shared, own


def _yaml(value: Any) -> str:
    """A value on one line. YAML's floats have a point: 1e-05 is a word to it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _gates(run_keys: Sequence[str], folder: Folder) -> dict[str, dict[str, list[int]]]:
    """run_key → role → how many prompts' gates, mean over layers, lie in each of GATE_BINS from 0 to 1."""
    role = pl.col("split").replace_strict({name: split.role for name, split in SPLITS.items()}, default=None)
    place = (pl.col("gate").list.mean() * GATE_BINS).floor().clip(0, GATE_BINS - 1).cast(pl.Int64)
    found: dict[str, dict[str, list[int]]] = {}
    for frame in store.item_frames(folder, run_keys, ["split", "gate"]):
        gated = frame.filter(pl.col("gate").is_not_null(), ~pl.col("split").is_in(list(ATTACKS)))
        counts = gated.group_by("run_key", role.alias("role"), place.alias("bin")).len()
        for key in frame["run_key"].unique():
            found.pop(key, None)
        for key, which, at, count in counts.iter_rows():
            found.setdefault(key, {}).setdefault(which, [0] * GATE_BINS)[at] = count
    return found


def _generations(
    rows: Sequence[Row], target: Row | None, retain: Row | None, folder: Folder
) -> tuple[list[dict[str, Any]], dict[str, list[str | int | None]]]:
    """(questions that were asked, run_key → what it said to each: 0 for what the target model said, null for nothing).

    target, retain: what these said stands with the questions.
    """
    source = target or next(iter(rows), None)
    if source is None:
        return [], {}
    budget = CHARACTERS // LONGEST_GENERATION // max(1, len(rows))
    answered = store.scan_items(folder, [source["run_key"]]).filter(pl.col("generation").is_not_null())
    sample = _sample(answered, min(max(budget, LEAST_EXAMPLES), MOST_EXAMPLES))
    places = {(row["split"], row["item_index"]): place for place, row in enumerate(sample)}
    chosen = pl.DataFrame(list(places), schema={"split": pl.String, "item_index": pl.Int64}, orient="row")
    chosen = chosen.with_row_index("place")
    keys = [row["run_key"] for row in (*rows, target, retain) if row is not None]
    said: dict[str, list[Any]] = {}
    for frame in store.item_frames(folder, keys, ["split", "item_index", "generation"]):
        own = frame.join(chosen, on=["split", "item_index"]).select("run_key", "place", "generation")
        said |= {key: [None] * len(sample) for key in frame["run_key"].unique()}
        for key, place, text in own.iter_rows():
            said[key][place] = (
                text if text is None or len(text) <= LONGEST_GENERATION else f"{text[:LONGEST_GENERATION]}…"
            )
    nothing = [None] * len(sample)
    before, never = (said.pop(row["run_key"], nothing) if row else nothing for row in (target, retain))
    questions = [
        {
            "split": row["split"].replace("_", " "),
            "role": SPLITS[row["split"]].role,
            "question": row["question"],
            "answer": row["answer"],
            "before": before[place],
            "never": never[place],
        }
        for place, row in enumerate(sample)
    ]
    return questions, {
        key: [0 if text is not None and text == before[place] else text for place, text in enumerate(texts)]
        for key, texts in said.items()
    }


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST_GENERATION else f"{text[:LONGEST_GENERATION]}…"


def _sample(answered: pl.DataFrame, size: int) -> list[dict[str, Any]]:
    """Items of every kind: a third of the first split that was to be forgotten, a third of the first to be kept, and of
    the others together a third, at least one each; evenly from first to last."""
    splits = answered["split"].unique(maintain_order=True).to_list()
    splits = [split for role in ROLES for split in splits if SPLITS[split].role == role]
    first = {SPLITS[split].role: split for split in reversed(splits)}
    main = [first[role] for role in ROLES[:2] if role in first]
    others = [split for split in splits if split not in main]
    chosen: list[dict[str, Any]] = []
    for split in (*main, *others):
        count = size // 3 if split in main else max(1, size // 3 // len(others))
        members = answered.filter(split=split).sort("item_index")
        chosen += members.gather_every(max(1, members.height // count)).head(count).to_dicts()
    return chosen


def _seeds(rows: Sequence[Row], names: Sequence[str], folder: Folder) -> list[dict[str, Any]]:
    """Mean and standard deviation of runs that differ in nothing but their seed, here and in RESULTS/seeds."""
    repeated: Sequence[Row] = []
    again = location(folder) / store.SEEDS
    if rows and (again / "runs").files(".parquet"):
        here = setting(rows[0]["config_json"])
        repeated = store.scan_runs(again).filter(status="ok").to_dicts()
        repeated = [row for row in repeated if setting(row["config_json"]) == here and row["adapter"] != "none"]
    alike: dict[str, dict[int, Row]] = {}
    for row in (*rows, *repeated):
        config = json.loads(row["config_json"])
        rest = {key: value for key, value in config.items() if key not in ("seed", "evaluation")}
        alike.setdefault(json.dumps(rest, sort_keys=True), {})[row["seed"]] = row
    places = {row["run_key"]: place for place, row in enumerate(rows)}
    return [
        {
            "method": next(iter(group.values()))["method"],
            "seeds": len(group),
            "run": next((places[row["run_key"]] for row in group.values() if row["run_key"] in places), None),
            "mean": _over(group.values(), names, statistics.mean),
            "deviation": _over(group.values(), names, statistics.stdev),
        }
        for group in alike.values()
        if len(group) > 1
    ]


def _over(rows: Any, names: Sequence[str], of: Callable[[Sequence[float]], float]) -> Mapping[str, float | None]:
    """A number of each score, where all of these rows have it."""
    values = {name: [row[name] for row in rows] for name in names}
    return {name: None if None in found else _short(float(of(found))) for name, found in values.items()}
