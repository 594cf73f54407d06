"""Make and evaluate the target and the retain model."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console, print_rows, progress

EXAMPLE = "grun-bench prepare --benchmark authors --model tiny --results results/mine"


def arguments(parser: Parser) -> None:
    """See `bench.cli.commands.Command`, here and below."""
    shared.config_file(parser)
    shared.results(parser)
    shared.where_it_runs(parser)


def run(options: Namespace) -> None:
    execution = shared.execution(options)
    config = shared.run_config(options, options.settings)
    from bench.runs.run import run_prerequisites
    from bench.runs.subject import Subject

    with progress() as shown:
        rows = run_prerequisites(config, execution, shown)
    print_rows(rows)
    console.print("The first item to be forgotten, as the model is asked it and answers:")
    console.print(Subject(config=config, execution=execution).shown_example(), markup=False, soft_wrap=True)
