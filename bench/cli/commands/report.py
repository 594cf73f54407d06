"""Write RESULTS/report.html and a picture of the fronts; of a sequence, requests.html."""

from bench.cli.options import COMPARED_RUNS, Options
from bench.cli.parser import option
from bench.cli.tables import console

EXAMPLE = "grun-bench report results/mine --where method=grun+npo"
ARGUMENTS = (*COMPARED_RUNS, option("--picture", metavar="PNG", help="picture to write (default: RESULTS/fronts.png)"))


def run(options: Options) -> None:
    comparison = options.comparison()
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
        page, picture = folder / "report.html", location(options.picture or str(folder / "fronts.png"))
        write_report(comparison, options.folder, page, picture)
        console.print(f"wrote {page} and {picture}")
