"""A sweep on a cluster that `ray up` made: a Ray job, which is followed to its end."""

import os
import sys
from pathlib import Path

from bench.cli.commands import sweep
from bench.cli.options import Options
from bench.cli.parser import as_option, option
from bench.cli.tables import log
from grun.errors import UserError

EXAMPLE = "grun-bench submit cluster.yaml search_spaces/tofu_*.yaml --results s3://my-bucket/tofu"
ARGUMENTS = (
    option("cluster", metavar="CLUSTER", help="the file that `ray up` was given, e.g. cluster.yaml"),
    *sweep.ARGUMENTS,
)


def run(options: Options) -> None:
    options.execution(), options.pool()  # what is wrong with anything is said here and now
    from bench.results.storage import location
    from bench.spaces.search_space import read_space, read_studies
    from grun.settings import plain_data

    if "://" not in str(location(options.results)) and not Path(options.results).is_absolute():
        raise UserError(
            "--results", f"{options.results} is not seen by every node; name s3://, gs:// or a shared /folder"
        )
    spaces = {}
    for number, file in enumerate(options.spaces()):
        read_studies(file, options.settings, options.num_trials)
        space = read_space(file, options.settings, options.num_trials)
        spaces[f"{number}-{Path(file).name}"] = plain_data(space)
    from bench.cluster.submit import submit

    shared_models = os.environ.get("GRUN_BENCH_SHARED", options.results)
    sys.exit(submit(options.cluster, spaces, sweep_options(options), shared_models, log))


def sweep_options(options: Options) -> list[str]:
    """The words that `sweep` is to be given again; its settings lie in the files that are sent."""
    words = []
    for name, value in vars(options).items():
        if name not in ("cluster", "files", "settings") and value is not None:
            words += [as_option(name), *([] if value is True else [str(value)])]
    return words
