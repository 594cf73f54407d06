"""Rows of `runs`: of a run that was finished, and of one that failed."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.config import RunConfig
from bench.evaluation.score import score
from bench.results.columns import RUNS_SCHEMA
from bench.runs import costs
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted

Row = dict[str, Any]


def finished_row(
    config: RunConfig,
    adapted: Adapted,
    items: Sequence[Row],
    retain_model_items: Sequence[Row] | None,
    cost: Mapping[str, Any],
    study: str | None,
) -> Row:
    """The row of a run: its config, the scores of its items, what it cost and what it ran on.

    retain_model_items: what forget quality is measured against; None: there are none. cost: columns of `runs`.
    """
    gold = items if config.method == "retain_model" and retain_model_items is None else retain_model_items
    edited = adapted if isinstance(adapted, EditedModel) and config.adapter.edits else None
    columns = {**config_columns(config), **cost}
    scores = score(items, gold, columns["gate_threshold"] or 0.0)
    return {
        **columns,
        **scores,
        **costs.machine(adapted.device),
        "study": study,
        "status": "ok",
        "layers": list(edited.layers) if edited else None,
        "engine": edited.engine if edited else None,
        "created_at": datetime.now(UTC),
    }


def failed_row(config: RunConfig, error: BaseException, study: str | None) -> Row:
    """The row of a run that ended in an error: its config, the error in one line, no metrics."""
    message = " ".join(str(error).split()) or "no message"
    text = message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"
    failed = {"study": study, "status": "failed", "error": text[:500], "created_at": datetime.now(UTC)}
    return config_columns(config) | failed


def config_columns(config: RunConfig) -> Row:
    """A row with the columns that follow from the config alone; the rest are null."""
    adapter = config.adapter
    row: Row = dict.fromkeys(RUNS_SCHEMA.names) | {
        "run_key": config.run_key,
        "train_key": config.train_key,
        "method": config.method,
        "benchmark": config.benchmark.name,
        "forget_split": config.benchmark.forget_split,
        "model": config.model.name,
        "adapter": "external" if config.external and config.method != config.start_from else adapter.name,
        "seed": config.seed,
        "config_json": config.to_json(),
    }
    if not adapter.trains:
        return row
    settings = dataclasses.asdict(adapter)
    row |= {name: settings.get(name) for name in ("gate_function", "gate_threshold", "gate_weight")}
    if not adapter.has_loss:
        return row
    return row | {
        "forget_loss": config.forget_loss.name,
        "retain_loss": config.retain_loss.name,
        "rank": settings.get("rank", settings.get("r")),
        "learning_rate": adapter.learning_rate,
        "num_epochs": config.training.num_epochs,
        "forget_weight": config.training.forget_weight,
        "retain_weight": config.training.retain_weight,
    }
