"""The pictures: fronts and triangles, drawn as PNG files. The page draws its own."""

import io
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from bench import pareto
from bench.reports.comparison import Comparison, Row
from bench.results.storage import Location
from bench.results.store import frame_of
from bench.splits import Direction

PNG_SCALE = 2.0


def write_picture(picture: Location, chart: Any) -> None:
    """As a PNG."""
    drawn = io.BytesIO()
    chart.save(drawn, format="png", scale_factor=PNG_SCALE)
    picture.write(drawn.getvalue())


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
            cross,
            marks.mark_text(align="right", dx=-10).encode(text="method:N"),
        ]
    return alt.layer(*layers).properties(width=400, height=320) if layers else None


def _runs_layers(
    rows: Sequence[Row], x: tuple[str, Direction], y: tuple[str, Direction], x_axis: Any, y_axis: Any
) -> list[Any]:
    """Each method's staircase, and a mark a run. x, y: a score and which way of it is better."""
    columns = list(dict.fromkeys(["method", "adapter", "forget_loss", x[0], y[0]]))
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
    )
    return [stairs.encode(detail="method:N", order=f"{x[0]}:Q"), marks]


def requests_triangle(rows: pl.DataFrame) -> Any:
    """Forget ROUGE-L of every request (across) after every request (down), a panel a method: dark is known."""
    own = rows.filter("is_own_variant")
    columns = ("request_index", "evaluated_index", "forget_rouge_l_recall")
    encoding = {
        "x": alt.X("evaluated_index:O", title="questions of request"),
        "y": alt.Y("request_index:O", title="after request"),
        "color": alt.Color("forget_rouge_l_recall:Q", title="ROUGE-L", scale=alt.Scale(domain=[0, 1], scheme="blues")),
    }
    panels = []
    for study in own["study"].unique(maintain_order=True):
        cells = alt.Chart(own.filter(pl.col("study") == study).select(columns), title=study)
        panels.append(cells.mark_rect().encode(**encoding).properties(width=280, height=280))
    return alt.hconcat(*panels)
