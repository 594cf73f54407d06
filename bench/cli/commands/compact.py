"""Put the rows of many small Parquet files into few large ones."""

from bench.cli.options import FOLDER, Options
from bench.cli.tables import console

EXAMPLE = "grun-bench compact results/mine"
ARGUMENTS = (FOLDER,)


def run(options: Options) -> None:
    from bench.results import store

    num_files, damaged = store.compact(options.folder)
    console.print(
        f"{num_files} small files compacted" + (f", {damaged} damaged files left as they were" if damaged else "")
    )
