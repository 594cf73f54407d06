"""`grun-bench`: finds the command, and turns what goes wrong into one line and an exit code.

An error in the user's hands is one line on stderr and exit code 2.
"""

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from bench.cli.commands import COMMANDS, GROUPS, Command
from bench.cli.options import Options, split_settings
from bench.cli.parser import Parser, complain
from bench.results import provenance
from grun.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `grun-bench` command."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own future
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        command, options = parsed(sys.argv[1:] if argv is None else argv)
        command.run(options)
    except UserError as error:
        sys.exit(complain(str(error)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(complain(f"--results: {error.strerror}; free some, and run it again: what was finished is kept"))
    except KeyboardInterrupt:
        print("grun-bench: interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)


def parsed(argv: Sequence[str]) -> tuple[Command, Options]:
    """The command and its options, its RunConfig keys under `settings`. Ends the process where they are wrong."""
    words, settings = split_settings(argv)
    chosen = Parser(prog="grun-bench", usage="grun-bench COMMAND [--help]", description=_listed())
    chosen.add_argument("--version", action=_Version, nargs=0, help=argparse.SUPPRESS)
    chosen.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    name = chosen.parse_args(words[:1]).command
    command = COMMANDS[name]
    parser = Parser(prog=f"grun-bench {name}", description=command.__doc__, epilog=f"example:\n  {command.EXAMPLE}")
    for add in command.ARGUMENTS:
        add(parser)
    options = parser.parse_args(words[1:], Options())
    if settings and "settings" not in options:
        parser.error(f"unrecognized arguments: {' '.join(f'--{key}' for key in settings)}")
    options.settings = {**vars(options).get("settings", {}), **settings}
    return command, options


class _Version(argparse.Action):
    """Say which code this is, and what it runs on."""

    def __call__(self, *_: Any) -> NoReturn:
        commit = provenance.git_sha() or "none, as it was installed from a package"
        for name, what in {**json.loads(provenance.versions()), "commit": commit}.items():
            print(f"{name} {what}")
        sys.exit(0)


def _listed() -> str:
    """Every command in its group, a line each."""
    lines = ["Benchmarks for LLM unlearning: train, search, compare."]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<12}{(COMMANDS[name].__doc__ or '').splitlines()[0]}" for name in names]
    return "\n".join(lines)
