"""One run: unlearn, evaluate, write its rows."""

from bench.cli.options import GATE_THRESHOLDS, ONE_RUN, RESULTS, ROBUSTNESS, WHERE_IT_RUNS, Options
from bench.cli.tables import console, print_rows, progress

EXAMPLE = "grun-bench train --forget-loss npo --adapter.layers 2,3,5 --adapter.learning_rate 0.01"
ARGUMENTS = (*ONE_RUN, RESULTS, GATE_THRESHOLDS, ROBUSTNESS, WHERE_IT_RUNS)


def run(options: Options) -> None:
    execution, config = options.execution(), options.run_config()
    from bench.results import store
    from bench.runs.run import run, run_prerequisites

    if store.read_run(execution.folder, config.run_key) is not None:
        console.print(f"{execution.folder} holds this run already; name another --results to do it again")
    execution.check(config)  # before what it is measured with is made
    with progress() as shown:
        references = run_prerequisites(config, execution, shown)
        rows = run(config, execution, gate_thresholds=options.gate_thresholds, progress=shown)
    print_rows([*references, *rows])
