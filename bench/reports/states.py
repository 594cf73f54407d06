"""The Markdown table of sequences of requests: a line a state, of every way to use the modules that was measured."""

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from bench.reports.comparison import Row, utility_of
from bench.results.requests import GIVEN_THRESHOLD

HEADINGS: Mapping[str, str] = {
    "requested_rouge_l_recall": "forget ROUGE-L, all so far",
    "not_yet": "not asked for yet",
    "requested_extraction_strength": "forget ES",
    "log10_requested_quality": "log10 forget quality",
    "utility": "model utility",
    "retain_rouge_l_recall": "retain ROUGE-L",
    "real_authors_rouge_l_recall": "real authors",
    "world_facts_rouge_l_recall": "world facts",
    "requested_paraphrased_question_rouge_l_recall": "asked in other words",
    "requested_prefix_attack_rouge_l_recall": "after a prefix",
    "requested_relearned_rouge_l_recall": "relearned",
    "retain_gate_open_share": "retain prompts that open a gate",
    "no_set_openings": "openings in no set",
    "added_parameters": "added parameters",
    "train_seconds": "train s a request",
    "eval_seconds": "eval s a state",
}
"""Columns of the table, where any state has them. `not_yet`: ROUGE-L of the requests that are still to come."""
ROUNDED = {"added_parameters": ",.0f", "train_seconds": ".0f", "eval_seconds": ".0f"}


def states_table(requests: pl.DataFrame, references: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown: the target and the retain model, then study by study, threshold by threshold.

    requests: what `bench.results.requests.scan_requests` gave. references: rows of `runs`.
    """
    rows = [*map(_as_state, references), *_states(requests)]
    shown = [name for name in HEADINGS if any(row.get(name) is not None for row in rows)]
    yield f"| study | method | combination | threshold | requests | {' | '.join(HEADINGS[name] for name in shown)} |"
    yield "|---|---|---|--:|--:|" + "--:|" * len(shown)
    for row in rows:
        combination = (row.get("combination") or "").replace("_", " ")
        threshold = "" if row.get("gate_threshold") is None else f"{row['gate_threshold']:g}"
        cells = (_cell(row.get(name), ROUNDED.get(name, ".3f")) for name in shown)
        named = f"{row.get('study', '')} | {row['method']}"
        yield f"| {named} | {combination} | {threshold} | {row['request_index']} | {' | '.join(cells)} |"


def _states(requests: pl.DataFrame) -> list[Row]:
    """A row a state, with what the requests to come still say in it."""
    ways = ["study", "combination", GIVEN_THRESHOLD.alias("given"), "request_index"]
    to_come = pl.col("forget_rouge_l_recall").filter(pl.col("is_requested").not_()).mean()
    states = (
        requests.sort("evaluated_index")
        .group_by(ways, maintain_order=True)
        .agg(pl.exclude("forget_rouge_l_recall", "request_index").first(), not_yet=to_come)
    )
    return states.sort("study", "combination", "given", "request_index").to_dicts()


def _as_state(row: Row) -> Row:
    """A run as a state before any request: what is asked of its forget set stands for what requests ask."""
    asked = {name: row.get(name.replace("requested", "forget", 1)) for name in HEADINGS if name.startswith("requested")}
    asked["log10_requested_quality"] = row["log10_forget_quality"]
    kept = {name: row.get(name) for name in HEADINGS if name.startswith(("retain", "real", "world"))}
    return {"method": row["method"], "request_index": 0, "utility": row[utility_of(row)], **asked, **kept}


def _cell(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)
