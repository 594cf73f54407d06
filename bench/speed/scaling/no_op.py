"""A run without a model: rows and items like a real run's, to measure and to try all that is around one."""

import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from bench.config import RunConfig
from bench.progress import Progress, quiet
from bench.results import provenance, store
from bench.results.columns import METRICS
from bench.runs.execution import Execution
from bench.runs.related import at_thresholds, prerequisites
from bench.runs.rows import Row, config_columns
from bench.splits import COSTS

ITEMS = {"forget": 40, "retain": 200, "real_authors": 100, "world_facts": 100}
"""Evaluated questions a split: TOFU's forget01 with a cut retain set."""
ANSWER_TOKENS = 40


def no_op(
    config: RunConfig,
    execution: Execution,
    *,
    gate_thresholds: Sequence[float] = (),
    study: str | None = None,
    progress: Progress = quiet,
    seconds: float = 0.0,
) -> list[Row]:
    """Called like `bench.runs.run.run`; waits for so many seconds instead of training and evaluating."""
    time.sleep(seconds)
    rows = no_op_rows(config, gate_thresholds, study)
    for row in rows:
        if store.read_run(execution.folder, row["run_key"]) is None:
            store.write_run(execution.folder, row, _items())
    return rows


def no_op_references(config: RunConfig, execution: Execution) -> None:
    """Rows of the target and the retain model: with them there, a sweep prepares no model."""
    store.create(execution.folder)
    for each in prerequisites(config):
        no_op(each, execution)


def no_op_rows(config: RunConfig, gate_thresholds: Sequence[float], study: str | None) -> list[Row]:
    """One row a threshold, with a score in every column: drawn anew for each config, alike for the same."""
    return [_row(each, study) for each in at_thresholds(config, gate_thresholds)]


def _row(config: RunConfig, study: str | None) -> Row:
    draw = random.Random(config.run_key)
    return {
        **config_columns(config),
        **{metric: draw.random() for metric in (*METRICS, *COSTS)},
        "study": study,
        "status": "ok",
        "layers": [3, 4, 5],
        "trainable_parameters": 15_567,
        "num_steps": 90,
        "versions": provenance.versions(),
        "git_sha": provenance.git_sha(),
        "created_at": datetime.now(UTC),
    }


@cache
def _items() -> list[Row]:
    """As many as a run on TOFU evaluates, each as long; floats that do not compress, as real ones do not."""
    draw = random.Random(0)

    def text(num_words: int) -> str:
        return " ".join(f"{draw.getrandbits(20):x}" for _ in range(num_words))

    def floats(count: int) -> list[float]:
        return [draw.random() for _ in range(count)]

    return [
        {
            "split": split,
            "item_index": index,
            "question": text(15),
            "answer": text(25),
            "generation": text(25),
            "answer_nll": draw.random(),
            "answer_tokens": ANSWER_TOKENS,
            "token_nll": floats(ANSWER_TOKENS),
            "token_is_argmax": [draw.random() < 0.5 for _ in range(ANSWER_TOKENS)],
            "token_mean_log_p": floats(ANSWER_TOKENS),
            "token_std_log_p": floats(ANSWER_TOKENS),
            "paraphrase_nll": draw.random(),
            "paraphrase_tokens": ANSWER_TOKENS,
            "wrong_nll": floats(5),
            "wrong_tokens": [ANSWER_TOKENS] * 5,
            "gate": floats(3),
        }
        for split, count in ITEMS.items()
        for index in range(count)
    ]
