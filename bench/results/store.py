"""The results folder: one Parquet file a run, written once and whole, read as tables.

    RESULTS/runs/<run_key>.parquet     one row: config, metrics, costs
    RESULTS/items/<run_key>.parquet    one row an evaluated item: raw values
    RESULTS/requests/<run_key>.parquet one row an evaluated request: a state of a sequence of requests
    RESULTS/gates/<run_key>.parquet    one row a threshold: how well gates tell requests apart
    RESULTS/states/                    hidden states that gates are fitted to
    RESULTS/losses/<train_key>.parquet one row a training: its losses, step by step
    RESULTS/sequences/<study>.json     the configuration that a sequence of requests was tuned to
    RESULTS/{runs,items,…}/compact-*   many of them in one, made by `compact`
    RESULTS/modules/<train_key>/       what was trained, where it is small
    RESULTS/studies.journal            Optuna's storage
    RESULTS/seeds/                     a results folder of its own: methods' best runs again, with other seeds

A file's name is the hash of the config, so writing a row again replaces it and never doubles it: many writers need no
lock. Readers may come at any time; where a run stands in several files, its own counts, then the latest compacted one.
"""

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bench.results.columns import TABLES, ItemRow, Row
from bench.results.storage import Folder, Location, Unreachable, location
from grun.errors import UserError

UNREADABLE = (OSError, pa.ArrowInvalid, pl.exceptions.PolarsError)
SEEDS = "seeds"
"""Folder under RESULTS: repeated runs are no trials, and must not be counted as such."""
COMPACT = "compact-"
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


def write_run(results: Folder, run: Row, items: Sequence[ItemRow] = ()) -> None:
    """Write one run: items first, so a run that is there always has its items. `run` is a row of RUNS_SCHEMA."""
    folder = location(results)
    write_rows(folder, "items", run["run_key"], items)
    write_rows(folder, "runs", run["run_key"], [run])


def write_losses(results: Folder, train_key: str, losses: Sequence[Sequence[float]]) -> None:
    """Write a training's losses, where it had steps: (total, forget, retain, gate) of each."""
    parts = TABLES["losses"].names[1:]
    rows = [dict(zip(parts, zip(*losses, strict=True), strict=True))] if losses else []
    write_rows(location(results), "losses", train_key, rows)


def scan_losses(results: Folder) -> pl.DataFrame:
    """What each training lost, step by step; without rows where the results are older than that.

    One row a `train_key`: that of `runs`; of a sequence's module or weights, its folder's name. Columns of lists, a
    float for each optimizer step from the first on: `total`, what was minimised, and `forget`, `retain` and `gate`
    without their weights (0 where there are no gates). A training that diverged has none.
    """
    folder = location(results)
    if not (folder / "losses").files(".parquet"):
        return _typed("losses", [])
    return scan(folder, "losses", "`grun-bench train`").unique("train_key", keep="last", maintain_order=True)


def write_rows(folder: Location, table: str, key: str, rows: Sequence[Row]) -> None:
    """Write the rows of a table that share a key, where there are any: its first column, and the file's name."""
    if rows:
        schema = TABLES[table]
        named = [{**row, schema.names[0]: key} for row in rows]
        (folder / table / f"{key}.parquet").write(_parquet(named, schema))


def read_run(results: Folder, run_key: str) -> dict[str, Any] | None:
    """One run's row; None where it was never written, failed, or its file or that of its items is damaged."""
    folder = location(results)
    rows = rows_of(folder, "runs", run_key)
    is_whole = bool(rows) and rows[0]["status"] == "ok" and _is_readable(folder / "items" / f"{run_key}.parquet")
    return rows[0] if is_whole else None


def read_items(results: Folder, run_key: str) -> list[dict[str, Any]] | None:
    """One run's items, in the order they were written; None where there are none or the file is damaged."""
    return rows_of(location(results), "items", run_key) or None


def rows_of(folder: Location, table: str, run_key: str) -> list[dict[str, Any]]:
    """Rows of one run: from its own file, else from what was compacted; none where that is damaged."""
    schema = TABLES[table]
    try:
        own = _read(folder / table / f"{run_key}.parquet", schema)
        return [] if own is None else own.to_pylist()
    except FileNotFoundError:
        pass
    for file in reversed([file for file in (folder / table).files(".parquet") if not _is_single(file)]):
        found = _read(file, schema, run_key)
        if found is not None and found.num_rows:
            return found.to_pylist()
    return []


def scan_runs(results: Folder) -> pl.DataFrame:
    """Every run's row, oldest first. Raises UserError where the folder holds no runs."""
    rows = scan(location(results), "runs", "`grun-bench train` or `grun-bench sweep`")
    return rows.unique("run_key", keep="last", maintain_order=True).sort("created_at")


def scan(folder: Location, table: str, maker: str) -> pl.DataFrame:
    """All rows of a table, those of a run's own file after those of compacted ones. maker: the command to name."""
    for _ in range(3):  # a compaction may take files away while they are read
        files = (folder / table).files(".parquet")
        if not files:
            raise UserError("RESULTS", f"{folder} holds no {table}; run {maker} first")
        try:
            return _typed(table, each_frame(files))
        except FileNotFoundError:
            continue
    raise UserError("RESULTS", f"{folder} changes faster than it can be read; try again")


def _typed(table: str, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Their rows in one frame with all columns of the table: null where a file is older than the column."""
    empty = pl.DataFrame(pl.from_arrow(TABLES[table].empty_table()))
    # A chunk a file costs more than the file.
    whole = pl.concat([empty, *frames], how="diagonal_relaxed", rechunk=True)
    return whole.select(empty.columns).cast(dict(zip(empty.columns, empty.dtypes, strict=True)))


def each_frame(files: Sequence[Location], columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """What each undamaged file holds, those of runs of their own last: they count. Raises FileNotFoundError.

    Through polars: a row of many columns takes pyarrow six times as long. columns: only these, which all files have.
    """
    for file in sorted(files, key=_is_single):
        content = file.read()
        try:
            yield pl.read_parquet(content, columns=columns, parallel="none")
        except UNREADABLE:
            continue


def scan_items(results: Folder, run_keys: Sequence[str]) -> pl.DataFrame:
    """Items of some runs, in this order."""
    found = {key: own for frame in item_frames(results, run_keys) for (key,), own in frame.group_by("run_key")}
    return _typed("items", [found[key] for key in run_keys if key in found])


def item_frames(
    results: Folder, run_keys: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[pl.DataFrame]:
    """Items of many runs: a frame a file; of one that stands in several the last counts. columns: run_key and these."""
    wanted = set(run_keys)
    files = (location(results) / "items").files(".parquet")
    files = [file for file in files if file.name.removesuffix(".parquet") in wanted or not _is_single(file)]
    for frame in each_frame(files, None if columns is None else ["run_key", *columns]):
        own = frame.filter(pl.col("run_key").is_in(wanted))
        if own.height:
            yield own


def damaged_files(results: Folder) -> list[Location]:
    """Parquet files without a readable end; their runs are done again when asked for."""
    folder = location(results)
    return [file for table in TABLES for file in (folder / table).files(".parquet") if not _is_readable(file)]


def compact(results: Folder) -> tuple[int, int]:
    """Many small files into few large ones; returns (files that were, damaged files left as they are).

    Safe beside readers and writers: a file is taken away only once its rows stand in another.
    """
    folder = location(results)
    num_files = 0
    for table, schema in TABLES.items():
        single = [file for file in (folder / table).files(".parquet") if _is_single(file)]
        for members, content in _packed(single, schema):
            (folder / table / f"{COMPACT}{time.time_ns()}-{os.getpid()}.parquet").write(content)
            for member in members:
                member.remove()
            num_files += len(members)
    return num_files, len(damaged_files(folder))


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


def _is_single(file: Location) -> bool:
    """One run's own file; those of `compact` are named by when they were made, so that later ones sort last."""
    return not file.name.startswith(COMPACT)


def _read(file: Location, schema: pa.Schema, run_key: str | None = None) -> pa.Table | None:
    """Rows (of one run, if named) with every column of the schema: null where the file is older than the column.

    None where the file is damaged. Raises FileNotFoundError where there is none.
    """
    filters = None if run_key is None else [("run_key", "==", run_key)]
    table = _parsed(file, lambda content: pq.read_table(content, filters=filters))
    if table is None:
        return None
    if table.schema.equals(schema):
        return table
    known = table.select([name for name in table.column_names if name in schema.names])
    return (
        pa.concat_tables([schema.empty_table(), known], promote_options="permissive").select(schema.names).cast(schema)
    )


def _is_readable(file: Location) -> bool:
    try:
        return _parsed(file, pl.read_parquet_metadata) is not None
    except FileNotFoundError:
        return True


def _parsed(file: Location, parse: Callable[[Any], Any]) -> Any:
    """What `parse` makes of a file; None where all of it can be read, and it is no Parquet.

    pyarrow says both in the same words: that a place cannot be reached, and that what lies there is damaged.
    Raises FileNotFoundError, and Unreachable.
    """
    try:
        with file.open() as handle:
            return parse(handle)
    except (FileNotFoundError, Unreachable):
        raise
    except UNREADABLE:
        content = file.read()
    try:
        return parse(pa.BufferReader(content))
    except UNREADABLE:
        return None
