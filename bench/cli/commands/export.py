"""One folder with the base model and all requests' modules, to deploy."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console

EXAMPLE = "grun-bench export results/sequential --study sequential-grun --output deployed --without 003"


def arguments(parser: Parser) -> None:
    shared.results_folder(parser)
    parser.add_argument("--study", required=True, help="whose modules: a GRUN study of that folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--without", nargs="+", default=[], metavar="REQUEST", help="leave these out, e.g. 003")


def run(options: Namespace) -> None:
    from bench.sequential.deployment import export

    names = export(options.folder, options.study, options.output, options.without)
    console.print(f"wrote {options.output}: the base model, and the modules of requests {', '.join(names)}")
