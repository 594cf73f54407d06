"""Each method's best run again with other seeds: a table of mean ± deviation."""

from __future__ import annotations

from argparse import Namespace

from bench.cli import options as shared
from bench.cli.parser import Parser, positive
from bench.cli.tables import console, log

EXAMPLE = "grun-bench seeds results/mine --num-seeds 3"


def arguments(parser: Parser) -> None:
    shared.compared_runs(parser)
    parser.add_argument("--num-seeds", type=positive, metavar="N", default=3, help="seeds a method (default: 3)")
    parser.add_argument("--output", metavar="MD", help="Markdown to write (default: RESULTS/seeds.md)")
    shared.pool(parser)


def run(options: Namespace) -> None:
    execution, pool = shared.execution(options, options.folder), shared.pool_of(options)
    comparison = shared.comparison(options)
    from bench.results.storage import location
    from bench.studies.seeds import repeat_best, write_table

    rows = repeat_best(comparison, options.num_seeds, execution, pool, log)
    output = location(options.output) if options.output else location(options.folder) / "seeds.md"
    write_table(output, rows, f"grun-bench seeds {options.folder} --num-seeds {options.num_seeds}")
    console.print(f"wrote {output}")
