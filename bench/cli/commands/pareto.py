"""Print the fronts; write a RunConfig for each of their points."""

from bench.cli.options import COMPARED_RUNS, Options
from bench.cli.parser import option
from bench.cli.tables import console, print_front, print_methods

EXAMPLE = "grun-bench pareto results/mine --objectives forget_rouge_l_recall:min model_utility:max"
_SAYS = (
    "fronts: without the line a method that `sweep` ends with; json: for other programs; markdown: each method's best "
    "run, or its repetitions by `seeds`"
)
ARGUMENTS = (
    *COMPARED_RUNS,
    option("--format", choices=["table", "fronts", "json", "markdown"], default="table", help=_SAYS),
)


def run(options: Options) -> None:
    comparison = options.comparison()
    from bench.reports.comparison import as_json, write_front_configs
    from bench.reports.table import methods_table, repeated
    from bench.results.storage import location

    if options.format == "markdown":
        print("\n".join(methods_table(repeated(comparison, location(options.folder)))))
        return
    front = location(options.folder) / "front"
    configs = write_front_configs(comparison, front)
    if options.format == "json":
        print(as_json(comparison))
        return
    if options.format == "table":
        print_methods(comparison)
    print_front(comparison)
    console.print(f"{len(configs)} ready-to-run configs in {front}; grun-bench train FILE runs one")
