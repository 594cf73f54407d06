"""Commands of `grun-bench`, a file each. A new one is written as a file and named in `GROUPS`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

from bench.cli.options import Options
from bench.cli.parser import Argument


class Command(Protocol):
    """What a file here has. Its name is the command's, its docstring the help.

    It imports what takes time only when it runs, so that every help text and every error in the words comes at once.
    """

    __doc__: str | None
    EXAMPLE: str
    """A command line that shows what it is for."""

    @property
    def ARGUMENTS(self) -> Sequence[Argument]:
        """Its words and options, as its help lists them."""

    def run(self, options: Options) -> None:
        """Do it. Raises UserError where something in the user's hands is wrong."""


GROUPS: Mapping[str, Sequence[str]] = {
    "one run": ("prepare", "train", "evaluate", "import", "keys"),
    "many runs": ("spaces", "init", "plan", "sweep", "submit", "seeds", "sequential"),
    "what they found": ("pareto", "report", "watch", "metrics", "gates", "export"),
    "upkeep": ("rescore", "compact", "benchmark", "completion"),
}
"""As `grun-bench --help` lists them."""
COMMANDS: Mapping[str, Command] = {
    name: cast(Command, import_module(f"{__name__}.{name}")) for names in GROUPS.values() for name in names
}
