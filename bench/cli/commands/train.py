"""One run: unlearn, evaluate, write its rows."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser
from bench.cli.tables import console, print_rows, progress

EXAMPLE = "grun-bench train --forget-loss npo --adapter.layers 2,3,5 --adapter.learning_rate 0.01"


def arguments(parser: Parser) -> None:
    shared.config_file(parser)
    shared.results(parser)
    shared.gate_thresholds(parser)
    shared.robustness(parser)
    shared.where_it_runs(parser)


def run(options: Namespace) -> None:
    execution = shared.execution(options)
    config = shared.run_config(options, shared.attacked(options))
    from bench.results import store
    from bench.runs.run import run, run_prerequisites

    if store.read_run(execution.folder, config.run_key) is not None:
        console.print(f"{execution.folder} holds this run already; name another --results to do it again")
    with progress() as shown:
        references = run_prerequisites(config, execution, shown)
        rows = run(config, execution, gate_thresholds=options.gate_thresholds, progress=shown)
    print_rows([*references, *rows])
