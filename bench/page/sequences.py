"""What the page shows of sequences of requests, as plain data: triangles, curves, whose gates open, variants."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from bench.reports.names import name_of

CURVES: Mapping[str, str] = {
    "utility": "utility",
    "requested_rouge_l_recall": "forget ROUGE-L, all requests so far",
    "retain_gate_open_share": "share of retain prompts that open a gate",
    "train_seconds": "seconds to train the request",
    "eval_seconds": "seconds to evaluate the state",
}
"""Columns drawn against the number of requests, and what to call them."""


def sequences_data(rows: pl.DataFrame, last: pl.DataFrame) -> dict[str, Any]:
    """rows: `bench.results.requests.scan_requests`. last: `last_states` of them."""
    own = rows.filter("is_own_variant")
    studies = own["study"].unique(maintain_order=True).to_list()
    return {
        "curves": CURVES,
        "studies": [_study(study, own.filter(study=study)) for study in studies],
        "variants": [
            {
                "study": row["study"],
                "how": row["combination"] or "chain",
                "at": row["gate_threshold"],
                "utility": row["utility"],
                "forget": row["requested_rouge_l_recall"],
            }
            for row in last.to_dicts()
        ],
    }


def _study(study: str, states: pl.DataFrame) -> dict[str, Any]:
    """One sequence as it was tuned. Matrices have a row a request that was made, a column a request's questions."""
    ordered = states.sort("request_index", "evaluated_index")
    first = ordered.filter(evaluated_index=1)
    final = ordered.filter(pl.col("request_index") == pl.col("request_index").max())
    return {
        "study": study,
        "name": name_of(ordered["method"][0]),
        "made": first["request_index"].to_list(),
        "requests": final["evaluated_request"].to_list(),
        "triangle": [
            _short(group["forget_rouge_l_recall"].to_list()) for group in ordered.partition_by("request_index")
        ],
        "curves": {name: _short(first[name].to_list()) for name in CURVES if first[name].null_count() < first.height},
        "open": [_short(shares) for shares in final["open_shares"]] if final["open_shares"].null_count() == 0 else None,
    }


def _short(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 3) for value in values]
