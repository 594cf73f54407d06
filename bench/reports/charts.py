"""The pictures: fronts and triangles, drawn as PNG files. The page draws its own."""

import io
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from bench import pareto
from bench.reports.comparison import Comparison, Row
from bench.reports.names import drawn_by, name_of, rank
from bench.results.storage import Location
from bench.splits import Direction

PNG_SCALE = 2.0
COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8d949c", "#f0e442"]
"""Okabe and Ito's, which colour-blind people can tell apart; the page has the same."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left"]
SHAPES += ["M0,-1L.6,1L-1,-.2H1L-.6,1Z", "M-1,-.4H1V.4H-1Z", "M-.4,-1V1H.4V-1Z", "M-1,0L-.5,-.9H.5L1,0L.5,.9H-.5Z"]
CROSSES = {"target model": "M0,-1V1M-1,0H1", "retain model": "M-.7,-.7L.7,.7M-.7,.7L.7,-.7"}
"""As the page draws them; their names stand in the legend, where they cover no point."""


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
        models = pl.DataFrame([{"model": name_of(row["method"]), x: row[x], y: row[y]} for row in references])
        shape = alt.Shape("model:N", title=None, scale=alt.Scale(domain=list(CROSSES), range=list(CROSSES.values())))
        marks = alt.Chart(models).mark_point(size=120, color="black", strokeWidth=2.5)
        layers.append(marks.encode(x=x_axis, y=y_axis, shape=shape))
    panel = alt.layer(*layers).resolve_scale(shape="independent").properties(width=400, height=320)
    return panel if layers else None


def _runs_layers(
    rows: Sequence[Row], x: tuple[str, Direction], y: tuple[str, Direction], x_axis: Any, y_axis: Any
) -> list[Any]:
    """Each method's staircase, and a mark a run. x, y: a score and which way of it is better."""
    rows = sorted(rows, key=lambda row: rank(row["method"]))
    values = np.array([[row[x[0]], row[y[0]]] for row in rows], dtype=np.float64)
    on_front = np.zeros(len(rows), dtype=bool)
    for method in {row["method"] for row in rows}:
        own = np.array([row["method"] == method for row in rows])
        on_front[own] = pareto.nondominated(values[own], [x[1], y[1]])
    named = []
    for row in rows:
        trained, loss = drawn_by(row)
        scores = {x[0]: row[x[0]], y[0]: row[y[0]]}
        named.append({"method": row["method"], "trained": trained, "loss": loss, **scores})
    runs = pl.DataFrame(named).with_columns(on_front=pl.Series(on_front))
    color = alt.Color("trained:N", title="trained", sort=None, scale=alt.Scale(range=COLOURS))
    drawn = alt.Chart(runs).encode(x=x_axis, y=y_axis, color=color)
    interpolate = "step-before" if x[1] == "max" else "step-after"
    stairs = drawn.transform_filter("datum.on_front").mark_line(interpolate=interpolate, opacity=0.6)
    marks = drawn.mark_point(filled=True, size=55).encode(
        shape=alt.Shape("loss:N", title="loss", sort=None, scale=alt.Scale(range=SHAPES)),
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
