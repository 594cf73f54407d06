"""Deletion requests one after another: one method a file; what was cut off goes on."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser, positive
from bench.cli.tables import log, print_sequences

EXAMPLE = "grun-bench sequential search_spaces/sequential_hard.yaml --results results/hard"


def arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="search_spaces/sequential_*.yaml")
    shared.settings(parser)
    shared.results(parser)
    parser.add_argument("--num-requests", type=positive, metavar="N", help="requests, in place of the files' own")
    shared.pool(parser)


def run(options: Namespace) -> None:
    execution, pool = shared.execution(options), shared.pool_of(options)
    from bench.results.requests import last_states, scan_requests
    from bench.sequential.studies import read_sequential, run_studies

    studies = [read_sequential(file, options.settings, options.num_requests) for file in options.files]
    run_studies(studies, execution, pool, log)
    asked = [study.run({}).to_json() for study in studies]
    print_sequences(last_states(scan_requests(execution.folder, asked)).to_dicts())
