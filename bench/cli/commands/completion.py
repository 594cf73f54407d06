"""Print what makes a shell complete commands, options and settings.

bash: write it to ~/.local/share/bash-completion/completions/grun-bench
zsh:  write it to a file _grun-bench in a folder of $fpath
fish: write it to ~/.config/fish/completions/grun-bench.fish
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from bench.cli.commands.keys import OTHER, configs_of
from bench.cli.options import Options
from bench.cli.parser import Parser, as_option, option

EXAMPLE = "grun-bench completion bash"
ARGUMENTS = (option("shell", choices=["bash", "zsh", "fish"], help="whose language"),)
PATHS = ("CLUSTER", "DIR", "FILE", "MD", "MODULE", "PNG", "RESULTS", "SPACE")
"""What a word that is a path is called in the help texts."""


def run(options: Options) -> None:
    import shtab

    from bench.cli.commands import COMMANDS
    from bench.config import RunConfig
    from bench.validation import schemas

    settings: dict[str, dict[str, None]] = {}
    for key, some in _settings(schemas(RunConfig), "RunConfig"):
        settings.setdefault(key, {}).update(dict.fromkeys(some))
    whole = Parser(prog="grun-bench")
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = commands.add_parser(name, help=(command.__doc__ or "").splitlines()[0])
        for add in command.ARGUMENTS:
            added = add(parser)
            if isinstance(added, argparse.Action) and added.metavar in PATHS:
                added.complete = shtab.FILE  # type: ignore[attr-defined]
        if parser.get_default("settings") is not None:
            for key, words in settings.items():
                parser.add_argument(as_option(key), choices=words or None)
    print(shtab.complete(whole, options.shell))


def _settings(kinds: Mapping[str, Any], kind: str, above: str = "") -> Iterator[tuple[str, list[str]]]:
    """(key, what it may be where that is one of a few words) of each setting of any config that can be chosen.

    Arguments: see `bench.cli.commands.keys`.
    """
    for name, field in kinds[kind]["properties"].items():
        if name == "name":
            continue
        inner = configs_of(kinds, field)
        words = [*inner, *(word for each in (field, *field.get("anyOf", ())) for word in each.get("enum", ()))]
        yield above + name, ["true", "false"] if field.get("type") == "boolean" else [w for w in words if w != OTHER]
        for config in inner.values():
            yield from _settings(kinds, config, f"{above}{name}.")
