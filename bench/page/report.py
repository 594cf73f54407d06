"""RESULTS → one self-contained HTML page and pictures. Reads Parquet, imports no model code."""

import json
from importlib import resources

import jinja2
import polars as pl

from bench.page.explorer import page_data
from bench.page.sequences import sequences_data
from bench.reports import charts
from bench.reports.comparison import Comparison
from bench.reports.names import name_of
from bench.reports.states import states_table
from bench.results.requests import last_states, scan_requests
from bench.results.storage import Folder, Location, location

PAGE = "report.html"


def write_report(comparison: Comparison, folder: Folder, picture: Location) -> list[Location]:
    """Write RESULTS/report.html, and of fronts and sequences, where there are any, pictures and a table; says which."""
    results = location(folder)
    requests = _requests(results)
    written = results / PAGE
    written.write(_page(comparison, results, requests, None).encode())
    files = [written]
    if requests is not None:
        table, triangle = results / "requests.md", results / "requests.png"
        table.write("".join(f"{line}\n" for line in states_table(requests, comparison.references)).encode())
        charts.write_picture(triangle, charts.requests_triangle(requests))
        files += [table, triangle]
    if comparison.runs or requests is None:
        files.append(picture)
        charts.write_picture(picture, charts.fronts(comparison))
    return files


def page(comparison: Comparison, folder: Folder, version: str | None = None) -> str:
    """The page: it needs no other file and no network. version: it is served, and asks for another one now and then."""
    results = location(folder)
    return _page(comparison, results, _requests(results), version)


def _requests(results: Location) -> pl.DataFrame | None:
    """Rows of the folder's sequences; None where there are none."""
    return scan_requests(results) if (results / "requests").files(".parquet") else None


def _page(comparison: Comparison, results: Location, requests: pl.DataFrame | None, version: str | None) -> str:
    last = None if requests is None else last_states(requests)
    data = page_data(comparison, results) | {"version": version}
    if requests is not None and last is not None:
        data["sequences"] = sequences_data(requests, last)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.page", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "openings": _openings, "name": name_of}
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        last=[] if last is None else last.to_dicts(),
        # `<` would begin or end an element, whatever string it stands in.
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        script=_file("explorer.js"),
        style=_file("explorer.css"),
        watched=version is not None,
    )


def _file(name: str) -> str:
    return resources.files("bench.page").joinpath(name).read_text(encoding="utf-8")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def _openings(share: float | None) -> str:
    """Beside a gate threshold that was chosen."""
    return "" if share is None else f", at which {share:.2%} of the held-back prompts open a gate"
