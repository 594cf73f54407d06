"""What a study will need before it is run: memory, hours, price, and what does not fit."""

import json

from bench.cli.options import SPACES, WHERE_IT_RUNS, Options, settings
from bench.cli.parser import fields_of, from_options, option, positive
from bench.cli.tables import log, print_plan, progress
from bench.planning import Cluster
from bench.progress import quiet

EXAMPLE = "grun-bench plan paper/tofu_grun_llama --gpu h100-80gb --num-gpus 8 --price 2.5"
ARGUMENTS = (
    SPACES,
    settings,
    fields_of("what it is to run on, at which price", Cluster),
    option("--num-trials", type=positive, metavar="N", help="trainings a study, not the files' own number"),
    option("--format", choices=("text", "json"), default="text", help="text, or all of it as JSON"),
    WHERE_IT_RUNS,
)


def run(options: Options) -> None:
    execution, cluster = options.execution("results"), from_options(Cluster, options)
    from bench.planning.facts import gpu
    from bench.spaces.search_space import read_studies

    gpu(cluster.gpu)
    studies = [study for file in options.spaces() for study in read_studies(file, options.settings, options.num_trials)]
    from bench.planning.plan import plan

    for study in studies:
        execution.check(study.run({}).adapter)
    if options.format == "json":
        log(json.dumps(plan(studies, execution, cluster, quiet), indent=2))
        return
    with progress() as shown:
        record = plan(studies, execution, cluster, shown)
    print_plan(record)
