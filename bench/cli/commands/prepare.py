"""Make and evaluate the target and the retain model."""

from bench.cli.options import ONE_RUN, RESULTS, WHERE_IT_RUNS, Options
from bench.cli.tables import console, log, print_rows, progress

EXAMPLE = "grun-bench prepare --benchmark authors --model tiny --results results/mine"
ARGUMENTS = (*ONE_RUN, RESULTS, WHERE_IT_RUNS)


def run(options: Options) -> None:
    execution, config = options.execution(), options.run_config()
    from bench.results import store
    from bench.runs.run import run_prerequisites
    from bench.runs.subject import Subject

    if execution.uses_ray_train:
        from bench.cluster.connect import connected
        from bench.studies.pool import Pool, place
        from bench.studies.sweep import make_prerequisites

        store.create(execution.folder)
        with connected(log):  # both side by side, where they fit
            at_once, worker = place(Pool(), execution)
            make_prerequisites([config], worker, log, at_once)
    with progress() as shown:
        rows = run_prerequisites(config, execution, shown)
    print_rows(rows)
    console.print("The first item to be forgotten, as the model is asked it and answers:")
    console.print(Subject(config=config, execution=execution).shown_example(), markup=False, soft_wrap=True)
