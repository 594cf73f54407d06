"""RESULTS → one self-contained HTML page and a PNG of the fronts. Reads Parquet, imports no model code."""

import io
import json
from functools import cache
from typing import Any

import jinja2
import polars as pl
import vl_convert

from bench.benchmarks import SPLITS
from bench.reports import charts
from bench.reports.comparison import Comparison, MethodSummary
from bench.results import store
from bench.results.storage import Folder, Location

NUM_EXAMPLES = 4
PNG_SCALE = 2.0


def write_report(comparison: Comparison, results_folder: Folder, page: Location, picture: Location) -> None:
    """Write the page and the picture. The page needs no other file and no network."""
    drawn = {"fronts": charts.fronts(comparison)}
    write_picture(picture, drawn["fronts"])
    gated = next((s for s in comparison.methods if s.recommended and s.recommended["gate_threshold"] is not None), None)
    if gated is not None and gated.recommended is not None:
        items = store.scan_items(results_folder, [gated.recommended["run_key"]])
        drawn["gates"] = charts.gate_histograms(items, gated.recommended["gate_threshold"])
    examples = [_examples(comparison, summary, results_folder) for summary in comparison.methods]
    _write_page(page, "report.html.j2", drawn, comparison=comparison, gated=gated, examples=examples)


def write_requests_report(rows: pl.DataFrame, last: pl.DataFrame, page: Location, picture: Location) -> None:
    """The page of a folder of sequences, and a picture of its triangles.

    rows: `bench.results.requests.scan_requests`. last: `last_states` of them.
    """
    gated = last.filter("is_own_variant", pl.col("combination").is_not_null()).head(1).to_dicts()
    drawn = {
        "triangle": charts.requests_triangle(rows),
        "curves": charts.requests_curves(rows),
        "variants": charts.requests_variants(last),
    }
    if gated:
        state = rows.filter(pl.col("run_key") == gated[0]["run_key"]).sort("evaluated_index")
        drawn["confusion"] = charts.gate_confusion(state)
    write_picture(picture, drawn["triangle"])
    _write_page(page, "requests.html.j2", drawn, last=last.to_dicts(), gated=gated[0] if gated else None)


def write_picture(picture: Location, chart: Any) -> None:
    drawn = io.BytesIO()
    chart.save(drawn, format="png", scale_factor=PNG_SCALE)
    picture.write(drawn.getvalue())


def _write_page(page: Location, template: str, drawn: dict[str, Any], **values: Any) -> None:
    """A template filled; drawn: each of its charts, by the id of the element it is drawn in."""
    loader = jinja2.PackageLoader("bench.reports", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = _number
    environment.filters["openings"] = _openings
    html = environment.get_template(template).render(
        # `</` would end the script element early, whatever string it stands in.
        specs_json=json.dumps({name: chart.to_dict() for name, chart in drawn.items()}).replace("</", "<\\/"),
        vega=_vega(),
        **values,
    )
    page.write(html.encode())


@cache
def _vega() -> str:
    """What draws, as a script that fetches nothing. Bundling it takes a second, once a process."""
    return str(vl_convert.javascript_bundle("Object.assign(window, {vegaEmbed});"))


def _examples(comparison: Comparison, summary: MethodSummary, folder: Folder) -> dict[str, Any]:
    """Some generations before and after, of the method's recommended run: forget items first, then retain ones."""
    rows: list[dict[str, Any]] = []
    if summary.recommended is not None and comparison.target_model is not None:
        before = store.scan_items(folder, [comparison.target_model["run_key"]])
        after = store.scan_items(folder, [summary.recommended["run_key"]])
        keys = ["split", "item_index"]
        both = after.join(before.select(*keys, pl.col("generation").alias("before")), on=keys, how="inner")
        for split in _shown_splits(both):
            members = both.filter(pl.col("split") == split).sort("item_index")
            step = max(1, members.height // NUM_EXAMPLES)
            rows += members.gather_every(step).head(NUM_EXAMPLES).to_dicts()
    return {"method": summary.method, "rows": rows}


def _shown_splits(items: pl.DataFrame) -> list[str]:
    """The first split with generations of each role: what was to be forgotten, and what to be kept."""
    answered = items.filter(pl.col("generation").is_not_null())["split"].unique(maintain_order=True).to_list()
    first = {SPLITS[split].role: split for split in reversed(answered)}
    return [first[role] for role in ("forgotten", "kept") if role in first]


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _openings(share: float | None) -> str:
    """Beside a gate threshold that was chosen."""
    return "" if share is None else f", at which {share:.2%} of the held-back prompts open a gate"
