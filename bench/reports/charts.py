"""The pictures: one definition each, drawn as PNG files and as live charts in the page."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from bench import pareto
from bench.benchmarks import SPLITS
from bench.reports.comparison import Comparison, Row
from bench.results.store import frame_of
from bench.splits import ATTACKS, Direction

TOOLTIP_COLUMNS = ("method", "run_key", "rank", "gate_threshold", "learning_rate", "num_epochs", "train_seconds")


def fronts(comparison: Comparison) -> Any:
    """Every run, each method's front as a staircase, target and retain model as crosses.

    On the left the first two objectives; on the right, where runs have them, what a reader of the answers would see:
    forget ROUGE-L against utility.
    """
    (y, y_way), (x, x_way) = list(comparison.objectives.items())[:2]
    left = _front_panel(comparison, x, x_way, y, y_way)
    right = _front_panel(comparison, comparison.utility, "max", "forget_rouge_l_recall", "min")
    drawn = [panel for panel in (left, right) if panel is not None]
    nothing = alt.Chart(pl.DataFrame({"text": ["no run has these scores"]})).mark_text().encode(text="text:N")
    return alt.hconcat(*drawn) if drawn else nothing


def _front_panel(comparison: Comparison, x: str, x_way: Direction, y: str, y_way: Direction) -> Any:
    """None where no run has both scores."""
    x_axis = alt.X(f"{x}:Q", title=f"{x} ({x_way})".replace("_", " "), scale=alt.Scale(zero=False))
    y_axis = alt.Y(f"{y}:Q", title=f"{y} ({y_way})".replace("_", " "), scale=alt.Scale(zero=False))

    def scored(rows: Sequence[Row | None]) -> list[Row]:
        return [row for row in rows if row is not None and row[x] is not None and row[y] is not None]

    layers = []
    if rows := scored(comparison.runs):
        layers += _runs_layers(rows, (x, x_way), (y, y_way), x_axis, y_axis)
    if references := scored([comparison.target_model, comparison.retain_model]):
        marks = alt.Chart(frame_of("runs", references).select("method", x, y)).encode(x=x_axis, y=y_axis)
        cross = marks.mark_point(shape="cross", size=160, color="black", filled=True)
        layers += [
            cross.encode(tooltip=["method", x, y]),
            marks.mark_text(align="right", dx=-10).encode(text="method:N"),
        ]
    return alt.layer(*layers).properties(width=400, height=320) if layers else None


def _runs_layers(
    rows: Sequence[Row], x: tuple[str, Direction], y: tuple[str, Direction], x_axis: Any, y_axis: Any
) -> list[Any]:
    """Each method's staircase, and a mark a run. x, y: a score and which way of it is better."""
    columns = list(dict.fromkeys([*TOOLTIP_COLUMNS, "adapter", "forget_loss", x[0], y[0]]))
    values = np.array([[row[x[0]], row[y[0]]] for row in rows], dtype=np.float64)
    on_front = np.zeros(len(rows), dtype=bool)
    for method in {row["method"] for row in rows}:
        own = np.array([row["method"] == method for row in rows])
        on_front[own] = pareto.nondominated(values[own], [x[1], y[1]])
    runs = frame_of("runs", rows).select(columns).with_columns(on_front=pl.Series(on_front))
    drawn = alt.Chart(runs).encode(x=x_axis, y=y_axis, color=alt.Color("adapter:N", title="adapter"))
    interpolate = "step-before" if x[1] == "max" else "step-after"
    stairs = drawn.transform_filter("datum.on_front").mark_line(interpolate=interpolate, opacity=0.6)
    marks = drawn.mark_point(filled=True, size=55).encode(
        shape=alt.Shape("forget_loss:N", title="forget loss"),
        opacity=alt.condition("datum.on_front", alt.value(1.0), alt.value(0.35)),
        tooltip=[alt.Tooltip(column) for column in columns],
    )
    return [stairs.encode(detail="method:N", order=f"{x[0]}:Q"), marks]


def gate_histograms(items: pl.DataFrame, gate_threshold: float) -> Any:
    """How open one module's gates are, split by split: mean over layers of each prompt."""
    gates = items.filter(pl.col("gate").is_not_null(), ~pl.col("split").is_in(list(ATTACKS)))
    gates = gates.with_columns(pl.col("gate").list.mean())
    members = {
        name: gates.filter(pl.col("split").is_in([split for split, what in SPLITS.items() if what.role == role]))
        for name, role in (("forget", "forgotten"), ("keep", "kept"), ("never seen", "stranger"))
    }
    rule = alt.Chart(pl.DataFrame({"gate": [gate_threshold]})).mark_rule(strokeDash=[4, 4]).encode(x="gate:Q")
    x = alt.X("gate:Q", bin=alt.Bin(step=0.05, extent=[0, 1]), title="gate, mean over layers")
    panels = []
    for name, rows in members.items():
        if rows.height:
            bars = alt.Chart(rows.select("gate")).mark_bar().encode(x=x, y=alt.Y("count():Q", title=f"{name}: prompts"))
            panels.append(alt.layer(bars, rule).properties(width=700, height=80))
    return alt.vconcat(*panels)


def requests_triangle(rows: pl.DataFrame) -> Any:
    """Forget ROUGE-L of every request (across) after every request (down), a panel a method: dark is known."""
    own = rows.filter("is_own_variant")
    columns = ("request_index", "evaluated_index", "request", "evaluated_request", "forget_rouge_l_recall")
    encoding = {
        "x": alt.X("evaluated_index:O", title="questions of request"),
        "y": alt.Y("request_index:O", title="after request"),
        "color": alt.Color("forget_rouge_l_recall:Q", title="ROUGE-L", scale=alt.Scale(domain=[0, 1], scheme="blues")),
        "tooltip": ["request", "evaluated_request", alt.Tooltip("forget_rouge_l_recall", format=".3f")],
    }
    panels = []
    for study in own["study"].unique(maintain_order=True):
        cells = alt.Chart(own.filter(pl.col("study") == study).select(columns), title=study)
        panels.append(cells.mark_rect().encode(**encoding).properties(width=280, height=280))
    return alt.hconcat(*panels)


CURVES = {
    "utility": "utility",
    "requested_rouge_l_recall": "forget ROUGE-L, all requests so far",
    "retain_gate_open_share": "share of retain prompts that open a gate",
    "train_seconds": "seconds to train the request",
    "eval_seconds": "seconds to evaluate the state",
}
"""Columns drawn against the number of requests, and what to call them."""


def requests_curves(rows: pl.DataFrame) -> Any:
    """What the requests cost as they pile up, a line a method."""
    own = rows.filter("is_own_variant", pl.col("evaluated_index") == 1)
    return alt.hconcat(
        *(
            alt.Chart(own.select("study", "request_index", name))
            .mark_line(point=True)
            .encode(
                x=alt.X("request_index:Q", title="requests"),
                y=alt.Y(f"{name}:Q", title=title, scale=alt.Scale(zero=name.endswith("seconds"))),
                color=alt.Color("study:N", title="method"),
                tooltip=["study", "request_index", alt.Tooltip(name, format=".3f")],
            )
            .properties(width=220, height=220)
            for name, title in CURVES.items()
            if own[name].null_count() < own.height
        )
    )


def gate_confusion(state: pl.DataFrame) -> Any:
    """Whose gate (across) opens for whose questions (down), in one state."""
    cells = (
        state.select("evaluated_request", "evaluated_index", "open_shares")
        .explode("open_shares")
        .with_columns(module=pl.int_range(1, pl.len() + 1).over("evaluated_index"))
    )
    drawn = alt.Chart(cells).properties(width=360, height=360)
    return drawn.mark_rect().encode(
        x=alt.X("module:O", title="gate of request's module"),
        y=alt.Y("evaluated_index:O", title="questions of request"),
        color=alt.Color("open_shares:Q", title="open for", scale=alt.Scale(domain=[0, 1], scheme="greens")),
        tooltip=["evaluated_request", "module", alt.Tooltip("open_shares", format=".3f")],
    )


def requests_variants(last: pl.DataFrame) -> Any:
    """After the last request: the same modules at every combination and gate threshold, and the chains."""
    how = pl.coalesce("combination", pl.lit("chain")).alias("how")
    points = alt.Chart(last.select("study", how, "gate_threshold", "utility", "requested_rouge_l_recall")).encode(
        x=alt.X("utility:Q", scale=alt.Scale(zero=False)),
        y=alt.Y("requested_rouge_l_recall:Q", title="forget ROUGE-L, all requests", scale=alt.Scale(zero=False)),
    )
    marks = points.mark_point(filled=True, size=70).encode(
        color=alt.Color("study:N", title="method"), shape=alt.Shape("how:N", title="combination"), tooltip=["study"]
    )
    names = points.mark_text(align="left", dx=8).encode(text=alt.Text("gate_threshold:Q", format=".2f"))
    return (marks + names).properties(width=420, height=280)
