"""What a study will need before it is run: memory, hours, price, and what does not fit."""

import json
from pathlib import Path

from bench.cli.options import SPACES, Options, settings
from bench.cli.parser import fields_of, from_options, option, positive
from bench.cli.tables import log, print_plan, progress
from bench.planning import Cluster
from bench.progress import quiet
from bench.runs.execution import Execution

NOT_PLANNED = ("ray_train", "cpus_per_worker", "gpus_per_worker")
EXAMPLE = "grun-bench plan paper/tofu_grun_llama --gpu h100-80gb --num-gpus 8 --price 2.5"
ARGUMENTS = (
    SPACES,
    settings,
    fields_of("what it is to run on, at which price", Cluster),
    option("--num-trials", type=positive, metavar="N", help="trainings a study, not the files' own number"),
    option("--rates", type=Path, metavar="JSON", help="rates from what --measure printed as JSON"),
    option("--measure", action="store_true", help="also run it on the GPU here, on random weights"),
    option("--format", choices=("text", "json"), default="text", help="text, or all of it as JSON"),
    fields_of("where and how it runs", Execution, ("results", "save_module", *NOT_PLANNED)),
)


def run(options: Options) -> None:
    execution, cluster = options.execution("results"), from_options(Cluster, options)
    from bench.planning.facts import gpu
    from bench.spaces.search_space import read_studies

    gpu(cluster.gpu)
    studies = [study for file in options.spaces() for study in read_studies(file, options.settings, options.num_trials)]
    from bench.planning.measured import read_rates
    from bench.planning.plan import plan

    for study in studies:
        execution.check(study.run({}))
    rates = None if options.rates is None else read_rates(options.rates, cluster.gpu)
    if options.format == "json":
        log(json.dumps(plan(studies, execution, cluster, quiet, rates=rates, measure=options.measure), indent=2))
        return
    with progress() as shown:
        record = plan(studies, execution, cluster, shown, rates=rates, measure=options.measure)
    print_plan(record)
