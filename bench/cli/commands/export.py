"""One folder with the base model and all requests' modules, to deploy."""

from pathlib import Path

from bench.cli.options import FOLDER, Options
from bench.cli.parser import option
from bench.cli.tables import log

EXAMPLE = "grun-bench export results/sequential --study sequential-grun --output deployed --without 003"
ARGUMENTS = (
    FOLDER,
    option("--study", required=True, help="whose modules: a study of that folder, of grun or gated_lora"),
    option("--output", type=Path, required=True, metavar="DIR", help="folder to make"),
    option("--without", nargs="+", default=[], metavar="REQUEST", help="leave these out, e.g. 003"),
)


def run(options: Options) -> None:
    from bench.sequential.deployment import export

    names = export(options.folder, options.study, options.output, options.without)
    log(f"wrote {options.output}: the base model, and the modules of requests {', '.join(names)}")
