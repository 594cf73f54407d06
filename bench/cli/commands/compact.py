"""Put the rows of many small Parquet files into few large ones."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console

EXAMPLE = "grun-bench compact results/mine"


def arguments(parser: Parser) -> None:
    shared.results_folder(parser)


def run(options: Namespace) -> None:
    from bench.results import store

    num_runs, damaged = store.compact(options.folder)
    console.print(f"{num_runs} runs compacted" + (f", {damaged} damaged files left as they were" if damaged else ""))
