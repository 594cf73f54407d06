"""Evaluation logs of other tools, as runs of a results folder beside its own."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from bench.benchmarks.tofu import TofuConfig
from bench.config import RunConfig, overlay, run_config
from bench.content import file_digest
from bench.evaluation.score import score
from bench.exchange.open_unlearning import item_rows, method_of
from bench.models.prepare import REFERENCES, StartFrom
from bench.results import provenance, store
from bench.results.columns import ItemRow, Row
from bench.results.settings import setting
from bench.results.storage import Location
from bench.runs.related import prerequisite
from bench.runs.rows import config_columns
from grun.errors import UserError


def import_logs(
    files: Sequence[Path],
    method: str | None,
    references: Mapping[StartFrom, Path],
    base: Mapping[str, Any],
    results: Location,
) -> list[Row]:
    """Write a row and the items of each log, and return the rows; the same log again replaces its own.

    method: what they are called; None: as each one's folder. references: logs of the target and the retain model, which
    become the folder's. base: benchmark, model and evaluation of the runs that they are to stand beside.
    A log is measured against the retain model of these, given here or in the folder.
    Raises UserError, before anything is written, where a log is none, or of another benchmark, or lacks a reference.
    """
    if method in get_args(StartFrom):
        raise UserError("--name", f"{method} is what methods are compared with; use another, or --target-model FILE")
    shared = prerequisite(run_config(base), "target_model")
    if not isinstance(shared.benchmark, TofuConfig):
        raise UserError("benchmark", f"is {shared.benchmark.name}, and open-unlearning's logs are of tofu; use that")
    logs = [(role, role, references[role]) for role in REFERENCES if role in references]
    configs = [_config(shared, *log) for log in (*logs, *(("target_model", method or method_of(f), f) for f in files))]
    gold = _retain_model_items(shared, configs, results)
    benchmark, keep = shared.benchmark.load(), shared.evaluation.max_items_per_split
    made = [(config, item_rows(Path(config.external.model), benchmark, keep)) for config in configs if config.external]
    gold = next((items for config, items in made if config.method == "retain_model"), gold)
    rows = [_row(config, items, gold) for config, items in made]
    known = {row["method"]: row["forget_probability"] for row in rows}
    target, retain = known.get("target_model"), known.get("retain_model")
    if target is not None and retain is not None and target < retain:
        raise UserError("--target-model", "knows less of the forget set than --retain-model; are the two swapped?")
    store.create(results)
    for row, (_, items) in zip(rows, made, strict=True):
        store.write_run(results, row, items)
    return rows


def _config(shared: RunConfig, start_from: StartFrom, method: str, file: Path) -> RunConfig:
    """What names a log's row: what it holds, not where it lies."""
    log = {"method": method, "model": str(file.absolute()), "tool": "open-unlearning"}
    digest = file_digest(file)[:16]
    return run_config(overlay(shared.to_dict(), {"start_from": start_from, "external": log | {"model_digest": digest}}))


def _retain_model_items(shared: RunConfig, configs: Sequence[RunConfig], results: Location) -> Sequence[Row]:
    """Those of the folder's own retain model. Raises UserError where a reference is missing, or there would be two."""
    has_runs = bool((results / "runs").files(".parquet"))
    known = store.scan_runs(results).filter(adapter="none", status="ok").to_dicts() if has_runs else []
    there = {row["method"]: row for row in known if setting(row["config_json"]) == setting(shared.to_json())}
    for role in REFERENCES:
        option = f"--{role.replace('_', '-')}"
        given = next((config.run_key for config in configs if config.method == role), None)
        if given is None and role not in there:
            raise UserError(option, f"is needed: {results} holds no {role} of this benchmark, model and evaluation")
        if given is not None and role in there and there[role]["run_key"] != given:
            raise UserError(option, f"{results} holds a {role} already; leave it out, or name another --results")
    return store.read_items(results, there["retain_model"]["run_key"]) or () if "retain_model" in there else ()


def _row(config: RunConfig, items: Sequence[ItemRow], gold: Sequence[Row]) -> Row:
    """Scores and what they were made by; what the model cost, and on what it ran, no log says."""
    made_by = {"versions": provenance.versions(), "git_sha": provenance.git_sha()}
    finished = {"status": "ok", "created_at": datetime.now(UTC)}
    return {**config_columns(config), **score(items, gold, gate_threshold=0.0), **made_by, **finished}
