"""Write RESULTS/report.html and a picture of the fronts; of a sequence, requests.html."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console

EXAMPLE = "grun-bench report results/mine --where method=grun+npo"


def arguments(parser: Parser) -> None:
    shared.compared_runs(parser)
    parser.add_argument("--picture", metavar="PNG", help="picture to write (default: RESULTS/fronts.png)")


def run(options: Namespace) -> None:
    comparison = shared.comparison(options)
    from bench.reports.report import write_report, write_requests_report
    from bench.results.requests import last_states, scan_requests
    from bench.results.storage import location

    folder = location(options.folder)
    has_requests = bool((folder / "requests").files(".parquet"))
    if has_requests:
        rows, page, picture = scan_requests(folder), folder / "requests.html", folder / "requests.png"
        write_requests_report(rows, last_states(rows), page, picture)
        console.print(f"wrote {page} and {picture}")
    if comparison.runs or not has_requests:
        page = folder / "report.html"
        picture = location(options.picture) if options.picture else folder / "fronts.png"
        write_report(comparison, options.folder, page, picture)
        console.print(f"wrote {page} and {picture}")
