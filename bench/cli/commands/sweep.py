"""Search: one study a file, all with equal budgets; a sweep that was cut off goes on."""

from bench.cli.options import STUDIES, Options
from bench.cli.parser import option, positive
from bench.cli.tables import log, print_methods

EXAMPLE = "grun-bench sweep search_spaces/demo_*.yaml --results results/mine --num-trials 10"
ARGUMENTS = (
    *STUDIES,
    option("--num-trials", type=positive, metavar="N", help="trainings a study, not the files' own number"),
)


def run(options: Options) -> None:
    execution, pool = options.execution(), options.pool()
    from bench.reports.comparison import compare
    from bench.spaces.search_space import read_studies

    studies = [study for file in options.spaces() for study in read_studies(file, options.settings, options.num_trials)]
    from bench.studies.sweep import sweep  # Ray, and seconds of imports: only once the files are known to be good

    sweep(studies, execution, pool, log)
    print_methods(compare(options.results, dict(studies[0].objectives)))
