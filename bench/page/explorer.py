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
from bench.reports.names import drawn_by, name_of, rank
from bench.results import store
from bench.results.columns import SCORES
from bench.results.settings import is_log, leaves, setting
from bench.results.storage import Folder, location
from bench.splits import ATTACKS, COSTS

Said = list[str | None]
"""What a run said to each item that is shown; None: nothing."""
Gates = dict[str, list[int]]
"""Role → how many prompts' gates, mean over layers, lie in each of GATE_BINS from 0 to 1."""
CHARACTERS = 2_400_000
"""At most so many of generations on the page, all runs together."""
LONGEST_GENERATION = 300
LOSS_POINTS = 30
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
    references = comparison.references
    first = dict.fromkeys((*comparison.objectives, *OBJECTIVES, *HEADLINES))
    measured = {name for name in METRICS if any(row[name] is not None for row in (*rows, *references))}
    names = [name for name in dict.fromkeys((*first, *METRICS)) if name in measured]
    asked = _asked(next(iter((*references, *rows)), None), len(rows), folder)
    said, gates = _read([row["run_key"] for row in (*rows, *references)], asked, folder)
    nothing: Said = [None] * len(asked)
    before, never = (
        said.get(row["run_key"], nothing) if row else nothing
        for row in (comparison.target_model, comparison.retain_model)
    )
    by_method = grouped(rows, "method")
    shared, own = _settings(by_method)
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
                "module": row["train_key"],
                "method": row["method"],
                "again": not is_log(row["config_json"]),
                "settings": own[row["run_key"]],
                "gates": gates.get(row["run_key"]),
                "said": _unchanged(said.get(row["run_key"]), before),
            }
            for row in rows
        ],
        "losses": _losses(rows, folder),
        "questions": [_question(*each) for each in zip(asked, before, never, strict=True)],
        "seeds": _seeds(rows, names, folder),
    }


def _method(row: Row) -> dict[str, Any]:
    """How it is written and drawn."""
    trained, loss = drawn_by(row)
    name = row["method"] if row["adapter"] == "external" else name_of(row["method"])
    return {"name": name, "trained": trained, "loss": loss}


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


def _asked(source: Row | None, num_runs: int, folder: Folder) -> list[dict[str, Any]]:
    """The items whose generations the page has: fewer, the more runs there are. source: a run that answered them."""
    if source is None:
        return []
    answered = store.scan_items(folder, [source["run_key"]]).filter(pl.col("generation").is_not_null())
    budget = CHARACTERS // LONGEST_GENERATION // max(1, num_runs)
    return _sample(answered, min(max(budget, LEAST_EXAMPLES), MOST_EXAMPLES))


def _read(run_keys: Sequence[str], asked: Sequence[Row], folder: Folder) -> tuple[dict[str, Said], dict[str, Gates]]:
    """(run_key → what it said to each of these items, run_key → its gates), in one pass over all items."""
    rows = [(row["split"], row["item_index"]) for row in asked]
    places = pl.DataFrame(rows, schema={"split": pl.String, "item_index": pl.Int64}, orient="row")
    places = places.with_row_index("place")
    role = pl.col("split").replace_strict({name: split.role for name, split in SPLITS.items()}, default=None)
    at = (pl.col("gate").list.mean() * GATE_BINS).floor().clip(0, GATE_BINS - 1).cast(pl.Int64)
    said: dict[str, Said] = {}
    gates: dict[str, Gates] = {}
    for frame in store.item_frames(folder, run_keys, ["split", "item_index", "generation", "gate"]):
        own = frame.join(places, on=["split", "item_index"]).select("run_key", "place", "generation")
        said |= {key: [None] * len(asked) for key in frame["run_key"].unique()}
        for key, place, text in own.iter_rows():
            said[key][place] = _clipped(text)
        gated = frame.filter(pl.col("gate").is_not_null(), ~pl.col("split").is_in(ATTACKS))
        gates |= {key: {} for key in gated["run_key"].unique()}
        for key, which, place, count in gated.group_by("run_key", role.alias("role"), at.alias("at")).len().iter_rows():
            gates[key].setdefault(which, [0] * GATE_BINS)[place] = count
    return said, gates


def _question(item: Row, before: str | None, never: str | None) -> dict[str, str | None]:
    """before, never: what the target and the retain model say."""
    what = {"split": item["split"].replace("_", " "), "role": SPLITS[item["split"]].role}
    return what | {"question": item["question"], "answer": item["answer"], "before": before, "never": never}


def _unchanged(said: Said | None, before: Said) -> Sequence[str | int | None] | None:
    """0 for what the target model had said as well."""
    return said and [0 if text and text == old else text for text, old in zip(said, before, strict=True)]


def _losses(rows: Sequence[Row], folder: Folder) -> dict[str, dict[str, Any]]:
    """train_key → every how many steps, and each loss that is not always 0 at those."""
    found = {}
    trained = {row["train_key"] for row in rows}
    for row in store.scan_losses(folder).filter(pl.col("train_key").is_in(trained)).to_dicts():
        every = math.ceil(len(row["total"]) / LOSS_POINTS)
        shown = {part: list(map(_short, row[part][::every])) for part in ("forget", "retain", "gate") if any(row[part])}
        found[row["train_key"]] = {"every": every, "parts": shown}
    return found


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
    places: dict[str, int] = {}
    for place, row in enumerate((*rows, *repeated)):
        config = json.loads(row["config_json"])
        rest = json.dumps({key: config[key] for key in config.keys() - {"seed", "evaluation"}}, sort_keys=True)
        alike.setdefault(rest, {})[row["seed"]] = row
        if place < len(rows):
            places.setdefault(rest, place)
    return [
        {
            "method": next(iter(group.values()))["method"],
            "seeds": len(group),
            "run": places.get(rest),
            "mean": _over(group.values(), names, statistics.mean),
            "deviation": _over(group.values(), names, statistics.stdev),
        }
        for rest, group in alike.items()
        if len(group) > 1
    ]


def _over(rows: Any, names: Sequence[str], of: Callable[[Sequence[float]], float]) -> Mapping[str, float | None]:
    """A number of each score, where all of these rows have it."""
    values = {name: [row[name] for row in rows] for name in names}
    return {name: None if None in found else _short(float(of(found))) for name, found in values.items()}
