"""Time GRUN against pyvene, hooks, LoRA and full fine-tuning, on this machine."""

from pathlib import Path

from bench.cli.options import ONE_RUN, WHERE_IT_RUNS, Options
from bench.cli.parser import fields_of, from_options, option
from bench.cli.tables import console, progress
from bench.speed import SECTIONS, Effort
from grun.errors import UserError

EXAMPLE = "grun-bench benchmark --output benchmarks.md --adapter.learning_rate 0.01 --training.num_epochs 33"
_OUTPUT, _SAYS = Path("benchmarks.md"), "Markdown to write, JSON beside it"
_ONLY = f"of {', '.join(SECTIONS)}: measure these again, the file keeps the rest"
ARGUMENTS = (
    *ONE_RUN,
    option("--output", type=Path, metavar="MD", default=_OUTPUT, help=_SAYS),
    option("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=_ONLY),
    fields_of("how long is measured", Effort),
    WHERE_IT_RUNS,
)


def run(options: Options) -> None:
    execution, effort = options.execution(options.output.parent), from_options(Effort, options)
    config = options.run_config()
    if options.only == ["sweep"] and effort.num_trials == 0:
        raise UserError("--num-trials", "0 leaves out the sweep, and --only names nothing else; use 1 or more")
    from bench.speed.measure import measure
    from bench.speed.report import merged, read_records, write_records

    file = options.output.with_suffix(".json")
    others = read_records(file)
    known = others.get(config.model.name, {}) if options.only else {}
    with progress() as shown:
        for record in measure(config, execution, effort, shown, options.only or SECTIONS):
            write_records(options.output, {**others, config.model.name: merged(known, record)})
    console.print(f"wrote {options.output} and {file}")
