"""The results folder: one Parquet file a run, written once and whole, read as two tables.

    RESULTS/runs/<run_key>.parquet     one row: config, metrics, costs
    RESULTS/items/<run_key>.parquet    one row an evaluated item: raw values
    RESULTS/modules/<train_key>/       what was trained, where it is small
    RESULTS/studies.journal            Optuna's storage

A file's name is the hash of the config, so writing a row again replaces it and never doubles it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from grun.errors import UserError

SPLITS = ("forget", "retain", "real_authors", "world_facts", "holdout")
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
Row = Mapping[str, Any]


def create(results: Path) -> None:
    """Make the folder. Raises UserError where it cannot be written."""
    try:
        for table in ("runs", "items", "modules"):
            (results / table).mkdir(parents=True, exist_ok=True)
        probe = results / f".tmp-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError("--results", f"{results} cannot be written ({error.strerror}); name another folder") from error


def write_run(results: Path, run: Row, items: Sequence[Row] = ()) -> None:
    """Write one run: items first, so a run that is there always has its items. `run` is a row of RUNS_SCHEMA."""
    key = run["run_key"]
    if items:
        _write(results / "items" / f"{key}.parquet", [{"run_key": key, **item} for item in items], ITEMS_SCHEMA)
    _write(results / "runs" / f"{key}.parquet", [run], RUNS_SCHEMA)


def read_run(results: Path, run_key: str) -> dict[str, Any] | None:
    """One run's row; None where it was never written, failed, or its file is damaged."""
    rows = _read(results / "runs" / f"{run_key}.parquet", RUNS_SCHEMA)
    return rows[0] if rows and rows[0]["status"] == "ok" else None


def read_items(results: Path, run_key: str) -> list[dict[str, Any]] | None:
    """One run's items, in the order they were written; None where there are none or the file is damaged."""
    return _read(results / "items" / f"{run_key}.parquet", ITEMS_SCHEMA)


def scan_runs(results: Path) -> pl.DataFrame:
    """Every run's row. Raises UserError where the folder holds no runs."""
    if not (results / "runs").is_dir():
        raise UserError("RESULTS", f"{results} holds no runs; run `grun-bench train` or `grun-bench sweep` first")
    return _scan(results / "runs", RUNS_SCHEMA)


def scan_items(results: Path, run_keys: Sequence[str]) -> pl.DataFrame:
    """Items of some runs."""
    return _scan(results / "items", ITEMS_SCHEMA, run_keys)


def damaged_files(results: Path) -> list[Path]:
    """Parquet files that cannot be read; their runs are done again when asked for."""
    tables = (("runs", RUNS_SCHEMA), ("items", ITEMS_SCHEMA))
    return [file for table, schema in tables for file in _files(results / table) if _read(file, schema) is None]


def _write(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Write beside, flush to disk, rename: a reader sees the whole file or none."""
    unknown = {name for row in rows for name in row} - set(schema.names)
    if unknown:
        raise ValueError(f"{path.parent.name} has no column {', '.join(sorted(unknown))}")
    scratch = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with scratch.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]] | None:
    """Rows with every column of the schema: null where the file was written before there was one."""
    try:
        return [dict.fromkeys(schema.names) | row for row in pq.read_table(path).to_pylist()]
    except (OSError, pa.ArrowInvalid):
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))


def _scan(folder: Path, schema: pa.Schema, run_keys: Sequence[str] | None = None) -> pl.DataFrame:
    files = _files(folder) if run_keys is None else [folder / f"{key}.parquet" for key in run_keys]
    rows = [row for file in files for row in _read(file, schema) or []]
    return pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=schema)))
