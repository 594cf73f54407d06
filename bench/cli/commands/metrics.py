"""Judge the metrics, by models that know the forget set or not, and under attack."""

import sys

from bench.cli.options import COMPARED_RUNS, WHERE_IT_RUNS, Options
from bench.cli.parser import fields_of, option, positive
from bench.cli.tables import console, log, print_verdicts
from bench.studies.pool import Pool

EXAMPLE = "grun-bench metrics results/mine"
ARGUMENTS = (
    *COMPARED_RUNS,
    option("--num-models", type=positive, metavar="N", default=20, help="that know, and that do not (default: 20)"),
    option("--format", choices=["table", "json"], default="table", help="json: for other programs"),
    fields_of("how many at once", Pool, ("time_budget", "seconds_per_study")),
    WHERE_IT_RUNS,
)


def run(options: Options) -> None:
    execution, pool = options.execution(options.folder), options.pool()
    comparison = options.comparison()
    from bench.metaeval.judge import judge_metrics
    from bench.reports.charts import write_picture
    from bench.reports.judged import as_json, chart

    as_table = options.format == "table"
    say = log if as_table else lambda line: print(line, file=sys.stderr)
    verdicts = judge_metrics(comparison, options.num_models, execution, pool, say)
    picture = execution.folder / "metrics.png"
    write_picture(picture, chart(verdicts))
    if as_table:
        print_verdicts(verdicts)
        console.print(f"wrote {picture}")
    else:
        print(as_json(verdicts))
