"""The results folder: one Parquet file a run, written once and whole, read as two tables.

    RESULTS/runs/<run_key>.parquet     one row: config, metrics, costs
    RESULTS/items/<run_key>.parquet    one row an evaluated item: raw values
    RESULTS/requests/<run_key>.parquet one row an evaluated request: a state of a sequence of requests
    RESULTS/sequences/<study>.json     the configuration that a sequence of requests was tuned to
    RESULTS/{runs,items,…}/compact-*   many of them in one, made by `compact`
    RESULTS/modules/<train_key>/       what was trained, where it is small
    RESULTS/studies.journal            Optuna's storage

A file's name is the hash of the config, so writing a row again replaces it and never doubles it: many writers need no
lock. Readers may come at any time; where a run stands in several files, its own counts, then the latest compacted one.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bench.results.storage import Folder, Location, location
from grun.errors import UserError

SPLITS = ("forget", "retain", "real_authors", "world_facts", "holdout", "similar")
SPLIT_METRICS = (
    "probability",
    "rouge_l_recall",
    "truth_ratio",
    "truth_ratio_arithmetic",
    "truth_ratio_grun",
    "exact_memorization",
    "extraction_strength",
    "gate_mean",
    "gate_open_share",
)
ATTACK_METRICS = (
    "forget_paraphrased_question_rouge_l_recall",
    "forget_paraphrased_question_gate_shut_share",
    "forget_prefix_attack_rouge_l_recall",
    "forget_prefix_attack_gate_shut_share",
    "forget_8_bit_rouge_l_recall",
    "forget_8_bit_gate_shut_share",
    "forget_4_bit_rouge_l_recall",
    "forget_4_bit_gate_shut_share",
    "forget_relearned_rouge_l_recall",
    "forget_relearned_gate_shut_share",
)
CHOICE_SPLITS = ("wmdp_bio", "wmdp_cyber", "mmlu")
TEXT_SPLITS = ("forget_verbatim", "retain_verbatim", "holdout_verbatim", "forget_knowledge", "retain_knowledge")
TEXT_METRICS = ("rouge_l_f1", "gate_mean", "gate_open_share")
CHOICE_METRICS = ("accuracy", "gate_mean", "gate_open_share")
MEMBERSHIP_METRICS = ("mia_loss_auc", "mia_zlib_auc", "mia_min_k_auc", "mia_min_k_plus_auc", "privleak")
METRICS = (
    "forget_quality",
    "log10_forget_quality",
    "model_utility",
    "partial_model_utility",
    "gate_auc",
    *MEMBERSHIP_METRICS,
    *ATTACK_METRICS,
    *(f"{split}_{metric}" for split in SPLITS for metric in SPLIT_METRICS),
    *(f"{split}_{metric}" for split in CHOICE_SPLITS for metric in CHOICE_METRICS),
    *(f"{split}_{metric}" for split in TEXT_SPLITS for metric in TEXT_METRICS),
)
"""Every score, each a float column of `runs`."""
COSTS = ("train_seconds", "eval_seconds", "peak_memory_gb")

RUNS_SCHEMA = pa.schema(
    [
        ("run_key", pa.string()),
        ("train_key", pa.string()),
        ("study", pa.string()),
        ("method", pa.string()),
        ("benchmark", pa.string()),
        ("forget_split", pa.string()),
        ("model", pa.string()),
        ("adapter", pa.string()),
        ("forget_loss", pa.string()),
        ("retain_loss", pa.string()),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("config_json", pa.string()),
        ("gate_function", pa.string()),
        ("gate_threshold", pa.float64()),
        ("rank", pa.int64()),
        ("layers", pa.list_(pa.int64())),
        ("learning_rate", pa.float64()),
        ("num_epochs", pa.int64()),
        ("num_steps", pa.int64()),
        ("forget_weight", pa.float64()),
        ("retain_weight", pa.float64()),
        ("gate_weight", pa.float64()),
        *((metric, pa.float64()) for metric in METRICS),
        ("trainable_parameters", pa.int64()),
        *((cost, pa.float64()) for cost in COSTS),
        ("engine", pa.string()),
        ("device", pa.string()),
        ("num_threads", pa.int64()),
        ("versions", pa.string()),
        ("git_sha", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
ITEMS_SCHEMA = pa.schema(
    [
        ("run_key", pa.string()),
        ("split", pa.string()),
        ("item_index", pa.int64()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("generation", pa.string()),
        ("rouge_l_recall", pa.float64()),
        ("rouge_l_f1", pa.float64()),
        ("answer_nll", pa.float64()),
        ("answer_tokens", pa.int64()),
        ("token_nll", pa.list_(pa.float32())),
        ("token_is_argmax", pa.list_(pa.bool_())),
        ("token_mean_log_p", pa.list_(pa.float32())),
        ("token_std_log_p", pa.list_(pa.float32())),
        ("paraphrase_nll", pa.float64()),
        ("paraphrase_tokens", pa.int64()),
        ("wrong_nll", pa.list_(pa.float64())),
        ("wrong_tokens", pa.list_(pa.int64())),
        ("gate", pa.list_(pa.float64())),
    ]
)
REQUEST_METRICS = (
    "forget_probability",
    "forget_rouge_l_recall",
    "forget_truth_ratio",
    "forget_exact_memorization",
    "forget_extraction_strength",
    "forget_quality",
    "log10_forget_quality",
)
"""Scores of one evaluated request."""
STATE_METRICS = (
    "model_utility",
    "partial_model_utility",
    "requested_probability",
    "requested_rouge_l_recall",
    "requested_truth_ratio",
    "requested_extraction_strength",
    "requested_quality",
    "log10_requested_quality",
    "retain_probability",
    "retain_rouge_l_recall",
    "retain_truth_ratio",
    "real_authors_rouge_l_recall",
    "world_facts_rouge_l_recall",
    "similar_rouge_l_recall",
    "retain_gate_open_share",
    "similar_gate_open_share",
)
"""Scores of a state: all requests met so far together (`requested_`), and what was to be kept."""
REQUESTS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("run_key", "study", "method", "benchmark", "forget_split", "model")),
        *((name, pa.string()) for name in ("adapter", "forget_loss", "retain_loss")),
        ("seed", pa.int64()),
        ("config_json", pa.string()),
        ("combination", pa.string()),
        ("gate_threshold", pa.float64()),
        ("request_index", pa.int64()),
        ("request", pa.string()),
        ("evaluated_index", pa.int64()),
        ("evaluated_request", pa.string()),
        ("is_requested", pa.bool_()),
        *((metric, pa.float64()) for metric in (*REQUEST_METRICS, *STATE_METRICS)),
        ("open_shares", pa.list_(pa.float64())),
        ("retain_open_shares", pa.list_(pa.float64())),
        ("similar_open_shares", pa.list_(pa.float64())),
        ("added_parameters", pa.int64()),
        *(
            (cost, pa.float64())
            for cost in ("train_seconds", "eval_seconds", "prefill_seconds", "bare_prefill_seconds")
        ),
        ("device", pa.string()),
        ("git_sha", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""run_key names the state; (run_key, evaluated_index) a row. `*_open_shares`: for each request so far, the share of
the evaluated request's (or split's) prompts that open its gate."""
Row = Mapping[str, Any]
COMPACT = "compact-"
CHOICES = "sequences"
COMPACT_BYTES = 256 * 2**20
COMPACT_RUNS = 1000
"""Size and number of runs at which a compacted file is full: a table of one row takes 250 kB of memory."""


def create(results: Folder) -> None:
    """Make the folder. Raises UserError where it cannot be written."""
    folder = location(results)
    probe = folder / "writable"
    try:
        for table in ("runs", "items", "modules"):
            (folder / table).make_folder()
        probe.write(b"")
        probe.remove()
    except OSError as error:
        why = error.strerror or str(error).splitlines()[0]
        raise UserError("--results", f"{folder} cannot be written ({why}); name another folder") from error


def write_run(results: Folder, run: Row, items: Sequence[Row] = ()) -> None:
    """Write one run: items first, so a run that is there always has its items. `run` is a row of RUNS_SCHEMA."""
    folder, key = location(results), run["run_key"]
    _write_items(folder, key, items)
    (folder / "runs" / f"{key}.parquet").write(_parquet([run], RUNS_SCHEMA))


def write_requests(results: Folder, run_key: str, rows: Sequence[Row], items: Sequence[Row] = ()) -> None:
    """Write one state of a sequence of requests: its items, then its rows of REQUESTS_SCHEMA, one a request."""
    folder = location(results)
    _write_items(folder, run_key, items)
    (folder / "requests" / f"{run_key}.parquet").write(_parquet(rows, REQUESTS_SCHEMA))


def _write_items(folder: Location, run_key: str, items: Sequence[Row]) -> None:
    if items:
        rows = [{"run_key": run_key, **item} for item in items]
        (folder / "items" / f"{run_key}.parquet").write(_parquet(rows, ITEMS_SCHEMA))


def read_requests(results: Folder, run_key: str) -> list[dict[str, Any]]:
    """One state's rows; none where it was never written, or its file is damaged."""
    return _rows_of(location(results) / "requests", run_key, REQUESTS_SCHEMA)


def write_choice(results: Folder, study: str, config_json: str, combination: str | None, tau: float | None) -> None:
    """Say which configuration and variant a sequential study stands for. tau: its gate threshold."""
    choice = {"study": study, "config_json": config_json, "combination": combination, "gate_threshold": tau}
    (location(results) / CHOICES / f"{study.replace('/', '-')}.json").write((json.dumps(choice) + "\n").encode())


def scan_requests(results: Folder) -> pl.DataFrame:
    """Every state's rows, oldest first, of the configurations that studies were put to all their requests with.

    `is_own_variant`: whether the combination and gate threshold are those that the method was tuned with. `utility`:
    `model_utility`, or the partial one.
    Raises UserError where there are none.
    """
    folder = location(results)
    rows = _scan(folder, "requests", REQUESTS_SCHEMA, "`grun-bench sequential`")
    rows = rows.unique(["run_key", "evaluated_index"], keep="last", maintain_order=True)
    schema = {"study": pl.String, "config_json": pl.String, "combination": pl.String, "gate_threshold": pl.Float64}
    choices = pl.DataFrame([json.loads(file.read()) for file in (folder / CHOICES).files(".json")], schema=schema)
    chosen = rows.join(choices, on=["study", "config_json"], suffix="_chosen")
    if chosen.is_empty():
        raise UserError("RESULTS", f"{folder} holds no tuned sequence yet; run the same `grun-bench sequential` again")
    same = [pl.col(name).eq_missing(pl.col(f"{name}_chosen")) for name in ("combination", "gate_threshold")]
    return (
        chosen.with_columns(
            is_own_variant=pl.all_horizontal(same), utility=pl.coalesce("model_utility", "partial_model_utility")
        )
        .select(*REQUESTS_SCHEMA.names, "is_own_variant", "utility")
        .sort("created_at")
    )


def last_states(requests: pl.DataFrame) -> pl.DataFrame:
    """One row a method and variant: its state after the last request; `mean_train_seconds` is over all its requests.

    requests: what `scan_requests` gave.
    """
    rows = requests.filter(pl.col("evaluated_index") == 1).sort("request_index")
    last = rows.group_by(["study", "combination", "gate_threshold"], maintain_order=True).agg(
        pl.exclude("train_seconds").last(), pl.col("train_seconds").mean().alias("mean_train_seconds")
    )
    last = last.filter(pl.col("request_index") == pl.col("request_index").max().over("study"))
    return last.sort("study", pl.col("is_own_variant").not_(), "combination", "gate_threshold")


def read_run(results: Folder, run_key: str) -> dict[str, Any] | None:
    """One run's row; None where it was never written, failed, or its file is damaged."""
    rows = _rows_of(location(results) / "runs", run_key, RUNS_SCHEMA)
    return rows[0] if rows and rows[0]["status"] == "ok" else None


def read_items(results: Folder, run_key: str) -> list[dict[str, Any]] | None:
    """One run's items, in the order they were written; None where there are none or the file is damaged."""
    return _rows_of(location(results) / "items", run_key, ITEMS_SCHEMA) or None


def scan_runs(results: Folder) -> pl.DataFrame:
    """Every run's row, oldest first. Raises UserError where the folder holds no runs."""
    rows = _scan(location(results), "runs", RUNS_SCHEMA, "`grun-bench train` or `grun-bench sweep`")
    return rows.unique("run_key", keep="last", maintain_order=True).sort("created_at")


def _scan(folder: Location, table: str, schema: pa.Schema, maker: str) -> pl.DataFrame:
    """All rows of a table, those of a run's own file after those of compacted ones. maker: the command to name."""
    for _ in range(3):  # a compaction may take files away while they are read
        files = (folder / table).files(".parquet")
        if not files:
            raise UserError("RESULTS", f"{folder} holds no {table}; run {maker} first")
        try:
            tables = [_read(file, schema) for file in sorted(files, key=_is_single)]
        except FileNotFoundError:
            continue
        whole = pa.concat_tables([schema.empty_table(), *(each for each in tables if each is not None)])
        return pl.DataFrame(pl.from_arrow(whole.combine_chunks()))  # a chunk a file costs more than the file
    raise UserError("RESULTS", f"{folder} changes faster than it can be read; try again")


def scan_items(results: Folder, run_keys: Sequence[str]) -> pl.DataFrame:
    """Items of some runs."""
    folder = location(results) / "items"
    rows = [row for key in run_keys for row in _rows_of(folder, key, ITEMS_SCHEMA)]
    return pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)))


def damaged_files(results: Folder) -> list[Location]:
    """Parquet files without a readable end; their runs are done again when asked for."""
    folder = location(results)
    return [
        file
        for table in ("runs", "items", "requests")
        for file in (folder / table).files(".parquet")
        if not _is_readable(file)
    ]


def compact(results: Folder) -> tuple[int, int]:
    """Many small files into few large ones; returns (runs compacted, damaged files left as they are).

    Safe beside readers and writers: a file is taken away only once its rows stand in another.
    """
    folder = location(results)
    num_runs = 0
    for table, schema in (("items", ITEMS_SCHEMA), ("runs", RUNS_SCHEMA), ("requests", REQUESTS_SCHEMA)):
        single = [file for file in (folder / table).files(".parquet") if _is_single(file)]
        for members, content in _packed(single, schema):
            (folder / table / f"{COMPACT}{time.time_ns()}-{os.getpid()}.parquet").write(content)
            for member in members:
                member.remove()
            num_runs += len(members) if table == "runs" else 0
    return num_runs, len(damaged_files(folder))


def _packed(files: Sequence[Location], schema: pa.Schema) -> Iterator[tuple[list[Location], bytes]]:
    """The files' rows as large Parquet files, with the files they came from.

    Tables of many rows stay row groups of their own, so that one run's items are found without reading the others'.
    """
    members: list[Location] = []
    tables: list[pa.Table] = []
    num_bytes = 0
    for file in files:
        try:
            table = _read(file, schema)
        except FileNotFoundError:
            continue
        if table is not None:
            members.append(file)
            tables.append(table)
            num_bytes += table.nbytes
        if num_bytes > COMPACT_BYTES or len(tables) == COMPACT_RUNS:
            yield members, _joined(tables, schema)
            members, tables, num_bytes = [], [], 0
    if members:
        yield members, _joined(tables, schema)


def _joined(tables: Sequence[pa.Table], schema: pa.Schema) -> bytes:
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema) as writer:
        for table in tables if tables[0].num_rows > 1 else [pa.concat_tables(tables)]:
            writer.write_table(table)
    return out.getvalue()


def _parquet(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    unknown = {name for row in rows for name in row} - set(schema.names)
    if unknown:
        raise ValueError(f"there is no column {', '.join(sorted(unknown))}")
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), out)
    return out.getvalue()


def _rows_of(folder: Location, run_key: str, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of one run: from its own file, else from what was compacted."""
    try:
        own = _read(folder / f"{run_key}.parquet", schema)
        return [] if own is None else own.to_pylist()
    except FileNotFoundError:
        pass
    for file in reversed([file for file in folder.files(".parquet") if not _is_single(file)]):
        table = _read(file, schema, run_key)
        if table is not None and table.num_rows:
            return table.to_pylist()
    return []


def _is_single(file: Location) -> bool:
    """One run's own file; those of `compact` are named by when they were made, so that later ones sort last."""
    return not file.name.startswith(COMPACT)


def _read(file: Location, schema: pa.Schema, run_key: str | None = None) -> pa.Table | None:
    """Rows (of one run, if named) with every column of the schema: null where the file is older than the column.

    None where the file is damaged. Raises FileNotFoundError where there is none.
    """
    try:
        with file.open() as handle:
            table = pq.read_table(handle, filters=None if run_key is None else [("run_key", "==", run_key)])
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowInvalid):
        return None
    if table.schema.equals(schema):
        return table
    known = table.select([name for name in table.column_names if name in schema.names])
    return (
        pa.concat_tables([schema.empty_table(), known], promote_options="permissive").select(schema.names).cast(schema)
    )


def _is_readable(file: Location) -> bool:
    try:
        with file.open() as handle:
            pq.ParquetFile(handle)
    except FileNotFoundError:
        return True
    except (OSError, pa.ArrowInvalid):
        return False
    return True
