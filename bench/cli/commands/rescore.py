"""Compute every metric anew from the stored items."""

from bench.cli.options import FOLDER, Options
from bench.cli.tables import console

EXAMPLE = "grun-bench rescore results/mine"
ARGUMENTS = (FOLDER,)


def run(options: Options) -> None:
    from bench.studies.rescore import rescore

    rescored, lost = rescore(options.folder)
    console.print(f"{rescored} runs rescored" + (f", {lost} without readable items left as they were" if lost else ""))
