"""What the tables of a results folder hold: their columns, and the scores among them."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
import yaml

from bench.benchmarks import SPLITS
from bench.metrics.table import scores_of
from bench.splits import COSTS, RUN_METRICS, Direction, Metric
from grun.errors import UserError

Row = Mapping[str, Any]
ItemRow = dict[str, Any]
"""A row of `items` without its run_key: what a model made of one item of one split."""
SCORES: Mapping[str, Metric] = {**RUN_METRICS, **scores_of(SPLITS)}
METRICS = tuple(SCORES)
"""Every score, each a float column of `runs`."""

COLUMNS = yaml.safe_load(resources.files("bench.results").joinpath("columns.yaml").read_text(encoding="utf-8"))
REQUEST_METRICS: Sequence[str] = COLUMNS.pop("scores of a request")
STATE_METRICS: Sequence[str] = COLUMNS.pop("scores of a state")
GATE_SETS: Sequence[str] = COLUMNS.pop("gate sets")
SEVERAL: Mapping[str, Iterable[str]] = {
    "<scores>": METRICS,
    "<costs>": COSTS,
    "<scores of a request>": REQUEST_METRICS,
    "<scores of a state>": STATE_METRICS,
    "<openings>": [f"{name}_openings" for name in GATE_SETS],
    "<prompts>": [f"{name}_prompts" for name in GATE_SETS],
}


def _type(name: str) -> pa.DataType:
    if name.startswith("list of "):
        return pa.list_(_type(name.removeprefix("list of ")))
    return pa.timestamp("us", tz="UTC") if name == "time" else pa.type_for_alias(name)


def _schema(columns: Mapping[str, str]) -> pa.Schema:
    types: dict[str, pa.DataType] = {}
    for name, kind in columns.items():
        for each in SEVERAL.get(name, [name]):
            types.setdefault(each, _type(kind))
    return pa.schema(types)


TABLES: Mapping[str, pa.Schema] = {table: _schema(columns) for table, columns in COLUMNS.items()}
"""Table → what it holds."""
ITEMS_SCHEMA, RUNS_SCHEMA, REQUESTS_SCHEMA = (TABLES[table] for table in ("items", "runs", "requests"))


def item_row(**values: Any) -> ItemRow:
    """A row of `items` with these values, null in every other column."""
    return {**dict.fromkeys(ITEMS_SCHEMA.names), **values}


def check_objectives(field: str, objectives: Mapping[str, Direction]) -> None:
    """Raises UserError naming the field where one is no score, or is neither the better for being more nor less."""
    for name in objectives:
        metric = {**SCORES, **COSTS}.get(name)
        if metric is None:
            raise UserError(field, f"{name} is not a metric; use one of {', '.join((*SCORES, *COSTS))}")
        if metric.better is None:
            raise UserError(field, f"{name} is best in the middle, so neither max nor min; use {metric.instead}")
