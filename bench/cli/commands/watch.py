"""Serve the page on this machine while a sweep runs; it draws itself again."""

import contextlib

from bench.cli.options import COMPARED_RUNS, Options
from bench.cli.parser import option
from bench.cli.tables import log

EXAMPLE = "grun-bench watch results/mine"
ARGUMENTS = (
    *COMPARED_RUNS,
    option("--port", type=int, metavar="N", default=8300, help="where to listen; 0: any that is free (default: 8300)"),
)


def run(options: Options) -> None:
    from bench.page.watch import HOST, Watched, server

    options.comparison()  # what is wrong with the folder is said here, not in a browser
    with server(Watched(options.folder, options.comparison), options.port) as serving:
        log(f"http://{HOST}:{serving.server_port} has the page of {options.folder}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
