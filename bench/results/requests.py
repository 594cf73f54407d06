"""Sequences of requests: the table `requests`, a row an evaluated request, and what each method was tuned to."""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from bench.content import by_content
from bench.results.columns import REQUESTS_SCHEMA, ItemRow, Row
from bench.results.settings import setting
from bench.results.storage import Folder, location
from bench.results.store import rows_of, scan, write_rows
from grun.errors import UserError

SEQUENCES = "sequences"
"""Folder under RESULTS with a file a study: the configuration and variant it was tuned to."""

GIVEN_THRESHOLD = pl.when(pl.col("false_openings").is_null()).then(pl.col("gate_threshold"))
"""Null where it was chosen: then it is another one in each state of the same sequence."""


def write_requests(results: Folder, run_key: str, rows: Sequence[Row], items: Sequence[ItemRow] = ()) -> None:
    """Write one state of a sequence of requests: its items, then its rows of REQUESTS_SCHEMA, one a request."""
    folder = location(results)
    write_rows(folder, "items", run_key, items)
    write_rows(folder, "requests", run_key, rows)


def read_requests(results: Folder, run_key: str) -> list[dict[str, Any]]:
    """One state's rows; none where it was never written, or its file is damaged."""
    return rows_of(location(results), "requests", run_key)


def write_choice(results: Folder, study: str, config_json: str, combination: str | None, tau: float | None) -> None:
    """Say which configuration and variant a sequential study stands for. tau: its gate threshold."""
    choice = {"study": study, "config_json": config_json, "combination": combination, "gate_threshold": tau}
    (location(results) / SEQUENCES / f"{study.replace('/', '-')}.json").write((json.dumps(choice) + "\n").encode())


def scan_requests(results: Folder, like: Sequence[str] = ()) -> pl.DataFrame:
    """Every state's rows, oldest first, of the configurations that studies were put to all their requests with.

    like: configurations as JSON; of them and what compares with them alone, such as no other data. Empty: of all.
    `is_own_variant`: whether the combination and gate threshold are those that the method was tuned with. `utility`:
    `model_utility`, or the partial one.
    Raises UserError where there are none.
    """
    folder = location(results)
    rows = scan(folder, "requests", "`grun-bench sequential`")
    rows = rows.unique(["run_key", "evaluated_index"], keep="last", maintain_order=True)
    schema = {"study": pl.String, "config_json": pl.String, "combination": pl.String, "gate_threshold": pl.Float64}
    choices = pl.DataFrame([json.loads(file.read()) for file in (folder / SEQUENCES).files(".json")], schema=schema)
    rows, choices = (
        frame.with_columns(content=pl.col("config_json").map_elements(_content, return_dtype=pl.String))
        for frame in (rows, choices)
    )
    chosen = rows.join(choices, on=["study", "content"], suffix="_chosen")
    if like:
        settings = [setting(each) for each in like]
        alike = [setting(each) in settings for each in chosen["config_json"]]
        chosen = chosen.filter(pl.Series(alike, dtype=pl.Boolean))
    if chosen.is_empty():
        raise UserError("RESULTS", f"{folder} holds no tuned sequence yet; run the same `grun-bench sequential` again")
    same = [
        pl.col("combination").eq_missing(pl.col("combination_chosen")),
        GIVEN_THRESHOLD.eq_missing(pl.col("gate_threshold_chosen")),
    ]
    return (
        chosen.with_columns(
            is_own_variant=pl.all_horizontal(same), utility=pl.coalesce("model_utility", "partial_model_utility")
        )
        .select(*REQUESTS_SCHEMA.names, "is_own_variant", "utility")
        .sort("created_at")
    )


def _content(config_json: str) -> str:
    return json.dumps(by_content(json.loads(config_json)), sort_keys=True)


def last_states(requests: pl.DataFrame) -> pl.DataFrame:
    """One row a method and variant: its state after the last request; `mean_train_seconds` is over all its requests.

    requests: what `scan_requests` gave.
    """
    rows = requests.filter(pl.col("evaluated_index") == 1).sort("request_index")
    last = rows.group_by(["study", "combination", GIVEN_THRESHOLD.alias("given")], maintain_order=True).agg(
        pl.exclude("train_seconds").last(), pl.col("train_seconds").mean().alias("mean_train_seconds")
    )
    last = last.filter(pl.col("request_index") == pl.col("request_index").max().over("study"))
    return last.sort("study", pl.col("is_own_variant").not_(), "combination", "gate_threshold")
