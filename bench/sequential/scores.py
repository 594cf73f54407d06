"""The rows of a state: what each request's questions and the kept splits say after so many requests.

Shapes: B prompts, E edited layers, K requests so far.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.benchmarks import SPLITS
from bench.evaluation.score import score
from bench.results.columns import REQUEST_METRICS, STATE_METRICS, ItemRow
from bench.sequential.request import Request
from bench.splits import ATTACKS
from grun.engine.edited import EditedModel
from grun.gates.openings import HALF_OPEN
from grun.model.forward import Adapted, PlainModel

PREFILL_PROMPTS = 32
PREFILL_REPEATS = 7


def state_scores(
    rows: Sequence[ItemRow],
    gold: Sequence[ItemRow] | None,
    requests: Sequence[Request],
    size: int,
    gate_threshold: float | None,
) -> list[dict[str, Any]]:
    """Columns of `requests`, a row a request: its own scores beside those of the whole state.

    gold: the retain model's items. size: how many of the requests have been met. gate_threshold: None without gates.
    """
    threshold = gate_threshold or HALF_OPEN
    whole: dict[str, Any] = {**_whole_scores(rows, gold, requests[:size], threshold)}
    reworded = [row for row in rows if row["split"] == "forget_paraphrased_question"]
    for split in ("retain", "similar"):
        of_split = [row for row in rows if row["split"] == split]
        whole[f"{split}_open_shares"] = _open_shares(of_split, size, threshold)
    table = []
    for place, request in enumerate(requests, start=1):
        own = _rows_of(rows, [request])
        table.append(
            {
                **whole,
                "evaluated_index": place,
                "evaluated_request": request.name,
                "is_requested": place <= size,
                **_request_scores(own, None if gold is None else _rows_of(gold, [request])),
                "open_shares": _open_shares(own, size, threshold),
                "paraphrased_open_shares": _open_shares(_about(reworded, request), size, threshold),
            }
        )
    return table


def _about(attack_rows: Sequence[ItemRow], request: Request) -> list[ItemRow]:
    """Those of one request's items."""
    return [row for row in attack_rows if request.split == "forget" and row["item_index"] in request.indices]


def _rows_of(rows: Sequence[ItemRow], requests: Sequence[Request]) -> list[ItemRow]:
    """The items of some requests, as a forget set."""
    asked = {(request.split, index) for request in requests for index in request.indices}
    return [{**row, "split": "forget"} for row in rows if (row["split"], row["item_index"]) in asked]


def _whole_scores(
    rows: Sequence[ItemRow], gold: Sequence[ItemRow] | None, requests: Sequence[Request], gate_threshold: float
) -> dict[str, float]:
    """All requests so far taken together (`requested_`), as they are and under attack, and all that is none."""
    others = [row for row in rows if SPLITS[row["split"]].role != "forgotten" or row["split"] in ATTACKS]
    gold_rows = None if gold is None else _rows_of(gold, requests)
    scores = score([*_rows_of(rows, requests), *others], gold_rows, gate_threshold)
    whole = {name.replace("forget_", "requested_"): value for name, value in scores.items()}
    return {name: value for name, value in whole.items() if name in STATE_METRICS}


def _request_scores(rows: Sequence[ItemRow], gold: Sequence[ItemRow] | None) -> dict[str, float]:
    """One request's own items."""
    if not rows:
        return {}
    scores = score([{**row, "gate": None} for row in rows], gold, 0.0)  # gates are told apart in `open_shares`
    return {name: value for name, value in scores.items() if name in REQUEST_METRICS}


def _open_shares(rows: Sequence[ItemRow], num_modules: int, gate_threshold: float) -> list[float] | None:
    """For each module, the share of the prompts that open its gate, at any layer; None without gates or prompts."""
    if not rows or rows[0]["gate"] is None:
        return None
    gates_BEK = np.array([row["gate"] for row in rows]).reshape(len(rows), -1, num_modules)
    return [float(share) for share in (gates_BEK >= gate_threshold).any(axis=1).mean(axis=0)]


def prefill_seconds(
    adapted: EditedModel, prompts: Sequence[tuple[int, ...]], repeats: int = PREFILL_REPEATS
) -> tuple[float, float]:
    """Medians of a batch of prompts' first tokens (with the modules, without them), taken in turn.

    adapted: that knows none of the prompts.
    """
    asked_in_turn: tuple[Adapted, Adapted] = adapted, PlainModel(adapted.model)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for taken, asked in zip(seconds, asked_in_turn, strict=True):
            started = time.perf_counter()
            asked.generate(prompts, max_new_tokens=1)  # as token ids: waits for a GPU
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
