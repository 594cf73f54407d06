"""The pictures: one definition each, drawn as PNG files and as live charts in the page."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from bench.comparison import Comparison

TOOLTIP_COLUMNS = ("method", "run_key", "rank", "gate_threshold", "learning_rate", "num_epochs", "train_seconds")


def fronts(comparison: Comparison) -> Any:
    """Every run by the first two objectives, each method's front as a line, target and retain model as marks."""
    y, x = list(comparison.objectives)[:2]
    methods = [summary.method for summary in comparison.methods]
    columns = list(dict.fromkeys([*TOOLTIP_COLUMNS, x, y]))
    colour = alt.Color("method:N", sort=methods, title="method")
    x_axis = alt.X(f"{x}:Q", title=x.replace("_", " "), scale=alt.Scale(zero=False))
    y_axis = alt.Y(f"{y}:Q", title=y.replace("_", " "), scale=alt.Scale(zero=False))
    tooltip = [alt.Tooltip(column) for column in columns]
    layers = []
    if comparison.runs:
        every = alt.Chart(pl.DataFrame(comparison.runs, infer_schema_length=None).select(columns))
        layers.append(
            every.mark_circle(size=35, opacity=0.45).encode(x=x_axis, y=y_axis, color=colour, tooltip=tooltip)
        )
        on_front = pl.DataFrame(
            [row for summary in comparison.methods for row in summary.front], infer_schema_length=None
        ).select(columns)
        layers.append(
            alt.Chart(on_front)
            .mark_line(point=alt.OverlayMarkDef(filled=True, size=70), strokeWidth=2)
            .encode(x=x_axis, y=y_axis, color=colour, order=f"{x}:Q", tooltip=tooltip)
        )
    references = [row for row in (comparison.target_model, comparison.retain_model) if row and row[x] is not None]
    if references and all(row[y] is not None for row in references):
        marks = alt.Chart(pl.DataFrame(references, infer_schema_length=None).select("method", x, y))
        layers.append(marks.mark_point(shape="cross", size=160, color="black", filled=True).encode(x=x_axis, y=y_axis))
        layers.append(marks.mark_text(align="right", dx=-10).encode(x=x_axis, y=y_axis, text="method:N"))
    return alt.layer(*layers).properties(width=620, height=380)


def gate_histograms(items: pl.DataFrame, gate_threshold: float) -> Any:
    """How open one module's gates are, split by split: mean over layers of each prompt."""
    gates = items.filter(pl.col("gate").is_not_null()).select(
        pl.when(pl.col("split") == "forget")
        .then(pl.lit("forget"))
        .when(pl.col("split") == "retain")
        .then(pl.lit("retain"))
        .otherwise(pl.lit("the rest"))
        .alias("split"),
        pl.col("gate").list.mean().alias("gate"),
    )
    bars = (
        alt.Chart(gates)
        .mark_bar()
        .encode(
            x=alt.X("gate:Q", bin=alt.Bin(step=0.05, extent=[0, 1]), title="gate, mean over layers"),
            y=alt.Y("count():Q", title="prompts"),
            color=alt.Color("split:N", sort=["forget", "retain", "the rest"], legend=None),
        )
    )
    rule = alt.Chart(pl.DataFrame({"gate_threshold": [gate_threshold]})).mark_rule(strokeDash=[4, 4])
    both = alt.layer(bars, rule.encode(x="gate_threshold:Q"), data=gates).properties(width=620, height=90)
    return both.facet(row=alt.Row("split:N", sort=["forget", "retain", "the rest"], title=None)).resolve_scale(
        y="independent"
    )
