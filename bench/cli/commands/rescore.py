"""Compute every metric anew from the stored items."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console

EXAMPLE = "grun-bench rescore results/mine"


def arguments(parser: Parser) -> None:
    shared.results_folder(parser)


def run(options: Namespace) -> None:
    from bench.runs.rescore import rescore

    rescored, lost = rescore(options.folder)
    console.print(f"{rescored} runs rescored" + (f", {lost} without readable items left as they were" if lost else ""))
