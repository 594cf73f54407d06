"""What a run, or a sequence of requests, trained: a folder that other tools load."""

from pathlib import Path

from bench.cli.options import FOLDER, Options
from bench.cli.parser import option
from bench.cli.tables import log
from grun.errors import UserError

EXAMPLE = "grun-bench export results/mine --run 0123456789abcdef --output exported"
ARGUMENTS = (
    FOLDER,
    option("--run", metavar="RUN_KEY", help="the run whose module it is, as `pareto` lists them"),
    option("--study", help="or whose modules: a study of deletion requests, of a gated adapter"),
    option("--output", type=Path, required=True, metavar="DIR", help="folder to make"),
    option("--without", nargs="+", default=[], metavar="REQUEST", help="with --study: leave these out, e.g. 003"),
)


def run(options: Options) -> None:
    if (options.run is None) == (options.study is None):
        raise UserError("--run", "or --study says what to export; give one of them")
    if options.run is None:
        from bench.sequential.deployment import export

        names = export(options.folder, options.study, options.output, options.without)
        log(f"wrote {options.output}: the base model, and the modules of requests {', '.join(names)}")
        return
    if options.without:
        raise UserError("--without", "leaves out requests of a --study; a run has none")
    from bench.exchange.exported import export_run
    from bench.results.storage import location

    made = export_run(location(options.folder), options.run, options.output)
    what = {
        "whole": "a model that transformers loads",
        "update": f"a PEFT checkpoint, to be put on {made.base}",
        "module": "the base model as transformers loads it, and the module that grun.unlearned puts on",
    }
    log(f"wrote {options.output}: {what[made.kind]}; README.md says how")
