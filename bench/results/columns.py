"""What the tables of a results folder hold: their columns, and the scores among them."""

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

STRING, INTEGER, NUMBER = pa.string(), pa.int64(), pa.float64()
TIME = pa.timestamp("us", tz="UTC")


def _each(kind: pa.DataType, names: str) -> list[tuple[str, pa.DataType]]:
    """Columns of one type, their names with blanks between them."""
    return [(name, kind) for name in names.split()]


RUNS_SCHEMA = pa.schema(
    [
        *_each(STRING, "run_key train_key study method benchmark forget_split model adapter forget_loss retain_loss"),
        ("seed", INTEGER),
        *_each(STRING, "status error config_json gate_function"),
        ("gate_threshold", NUMBER),
        ("rank", INTEGER),
        ("layers", pa.list_(INTEGER)),
        ("learning_rate", NUMBER),
        *_each(INTEGER, "num_epochs num_steps"),
        *_each(NUMBER, "forget_weight retain_weight gate_weight"),
        *((metric, NUMBER) for metric in METRICS),
        *((cost, INTEGER if cost == "trainable_parameters" else NUMBER) for cost in COSTS),
        *_each(STRING, "engine device"),
        ("num_threads", INTEGER),
        *_each(STRING, "versions git_sha"),
        ("created_at", TIME),
    ]
)
ITEMS_SCHEMA = pa.schema(
    [
        *_each(STRING, "run_key split"),
        ("item_index", INTEGER),
        *_each(STRING, "question answer generation"),
        ("answer_nll", NUMBER),
        ("answer_tokens", INTEGER),
        ("token_nll", pa.list_(pa.float32())),
        ("token_is_argmax", pa.list_(pa.bool_())),
        *_each(pa.list_(pa.float32()), "token_mean_log_p token_std_log_p"),
        ("gradient_norm", NUMBER),
        ("paraphrase_nll", NUMBER),
        ("paraphrase_tokens", INTEGER),
        ("wrong_nll", pa.list_(NUMBER)),
        ("wrong_tokens", pa.list_(INTEGER)),
        ("gate", pa.list_(NUMBER)),
    ]
)
REQUEST_METRICS = dict(
    _each(
        NUMBER,
        "forget_probability forget_rouge_l_recall forget_truth_ratio forget_exact_memorization "
        "forget_extraction_strength forget_quality log10_forget_quality",
    )
)
"""Scores of one evaluated request."""
STATE_METRICS = dict(
    _each(
        NUMBER,
        "model_utility partial_model_utility requested_probability requested_rouge_l_recall "
        "requested_truth_ratio requested_extraction_strength requested_quality log10_requested_quality "
        "retain_probability retain_rouge_l_recall retain_truth_ratio real_authors_rouge_l_recall "
        "world_facts_rouge_l_recall similar_rouge_l_recall retain_gate_open_share similar_gate_open_share",
    )
)
"""Scores of a state: all requests met so far together (`requested_`), and what was to be kept."""
REQUESTS_SCHEMA = pa.schema(
    [
        *_each(STRING, "run_key study method benchmark forget_split model adapter forget_loss retain_loss"),
        ("seed", INTEGER),
        *_each(STRING, "config_json combination"),
        ("gate_threshold", NUMBER),
        ("request_index", INTEGER),
        ("request", STRING),
        ("evaluated_index", INTEGER),
        ("evaluated_request", STRING),
        ("is_requested", pa.bool_()),
        *REQUEST_METRICS.items(),
        *STATE_METRICS.items(),
        *_each(pa.list_(NUMBER), "open_shares retain_open_shares similar_open_shares"),
        ("added_parameters", INTEGER),
        *_each(NUMBER, "train_seconds eval_seconds prefill_seconds bare_prefill_seconds"),
        *_each(STRING, "device git_sha"),
        ("created_at", TIME),
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
