"""Print the fronts; write a RunConfig for each of their points."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console, print_front, print_methods

EXAMPLE = "grun-bench pareto results/mine --objectives forget_rouge_l_recall:min model_utility:max"


def arguments(parser: Parser) -> None:
    shared.compared_runs(parser)
    parser.add_argument("--format", choices=["table", "json"], default="table", help="json: for other programs")


def run(options: Namespace) -> None:
    comparison = shared.comparison(options)
    from bench.reports.comparison import as_json, write_front_configs
    from bench.results.storage import location

    front = location(options.folder) / "front"
    configs = write_front_configs(comparison, front)
    if options.format == "json":
        print(as_json(comparison))
        return
    print_front(comparison)
    print_methods(comparison)
    console.print(f"{len(configs)} ready-to-run configs in {front}; grun-bench train FILE runs one")
