"""Each method's best run again with other seeds: a table of mean ± deviation."""

import shlex

from bench.cli.options import COMPARED_RUNS, WHERE_IT_RUNS, Options
from bench.cli.parser import fields_of, option, positive
from bench.cli.tables import console, log
from bench.studies.pool import Pool

EXAMPLE = "grun-bench seeds results/mine --num-seeds 3"
ARGUMENTS = (
    *COMPARED_RUNS,
    option("--num-seeds", type=positive, metavar="N", default=3, help="seeds a method (default: 3)"),
    option("--best", choices=["rouge_l", "quality"], default="rouge_l", help="which best run (default: rouge_l)"),
    option("--output", metavar="MD", help="Markdown to write (default: RESULTS/seeds.md)"),
    fields_of("how many at once, and how long", Pool, ("seconds_per_study",)),
    WHERE_IT_RUNS,
)


def run(options: Options) -> None:
    execution, pool = options.execution(options.folder), options.pool()
    comparison = options.comparison()
    from bench.results.storage import location
    from bench.studies.seeds import repeat_best, write_table

    rows = repeat_best(comparison, options.best, options.num_seeds, execution, pool, log)
    output = location(options.output or str(execution.folder / "seeds.md"))
    command = f"grun-bench seeds {options.folder} --num-seeds {options.num_seeds}"
    chosen = f" --best {options.best} --utility-kept {options.utility_kept}"
    if options.objectives:
        chosen += " --objectives " + " ".join(f"{name}:{way}" for name, way in options.objectives)
    if options.where:
        chosen += " --where " + shlex.join(f"{key}={value}" for key, value in options.where)
    write_table(output, rows, command + chosen)
    console.print(f"wrote {output}")
