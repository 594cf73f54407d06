"""Deletion requests one after another: one method a file; what was cut off goes on."""

from bench.cli.options import ROBUSTNESS, STUDIES, Options
from bench.cli.parser import option, positive
from bench.cli.tables import log, print_sequences

EXAMPLE = "grun-bench sequential search_spaces/sequential_hard.yaml --results results/hard"
ARGUMENTS = (
    *STUDIES,
    option("--num-requests", type=positive, metavar="N", help="requests, in place of the files' own"),
    ROBUSTNESS,
)


def run(options: Options) -> None:
    execution, pool = options.execution(), options.pool()
    from bench.results.requests import last_states, scan_requests
    from bench.sequential.studies import read_sequential, run_studies

    studies = [read_sequential(file, options.settings, options.num_requests) for file in options.spaces()]
    run_studies(studies, execution, pool, log)
    asked = [study.run({}).to_json() for study in studies]
    print_sequences(last_states(scan_requests(execution.folder, asked)).to_dicts())
