"""Copy the shipped search spaces and cluster files into a folder, to edit."""

from pathlib import Path

from bench.cli.options import Options
from bench.cli.parser import option
from bench.cli.tables import log

EXAMPLE = "grun-bench init my-study"
ARGUMENTS = (option("folder", type=Path, metavar="DIR", help="folder to copy them into; made where it is missing"),)


def run(options: Options) -> None:
    from bench.spaces.shipped import copy_to

    copy_to(options.folder)
    log(
        f"wrote {options.folder}: search_spaces/, one study a file, and cluster.yaml for `ray up` (others in clusters/)"
    )
