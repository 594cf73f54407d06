"""Write RESULTS/report.html, a page to explore the runs, and pictures of the fronts."""

from bench.cli.options import COMPARED_RUNS, Options
from bench.cli.parser import option
from bench.cli.tables import console

EXAMPLE = "grun-bench report results/mine --where method=grun+npo"
ARGUMENTS = (*COMPARED_RUNS, option("--picture", metavar="PNG", help="picture to write (default: RESULTS/fronts.png)"))


def run(options: Options) -> None:
    comparison = options.comparison()
    from bench.page.report import write_report
    from bench.results.storage import location

    picture = location(options.picture) if options.picture else location(options.folder) / "fronts.png"
    files = write_report(comparison, options.folder, picture)
    console.print(f"wrote {' and '.join(map(str, files))}")
