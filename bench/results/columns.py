"""What the tables of a results folder hold: their columns, and the scores among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

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
        *((cost, pa.int64() if cost == "trainable_parameters" else pa.float64()) for cost in COSTS),
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
TABLES = {"items": ITEMS_SCHEMA, "runs": RUNS_SCHEMA, "requests": REQUESTS_SCHEMA}
"""Table → what it holds."""


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
