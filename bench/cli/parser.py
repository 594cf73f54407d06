"""argparse with errors of one line, and with options read off the fields of a dataclass."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from bench.validation import schemas, validated

WIDTH = 100
"""Columns of a help text."""
Kind = TypeVar("Kind")


class Parser(argparse.ArgumentParser):
    """argparse, with an error in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        sys.exit(complain(f"{message}; see {self.prog} --help"))


Argument = Callable[[Parser], object]
"""Adds something to a parser."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Whose usage names what must be there, and leaves the options to their groups."""

    def __init__(self, prog: str) -> None:
        super().__init__(f"{prog} [options]", max_help_position=32, width=WIDTH)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        super().add_usage(usage, [each for each in actions if each.required or not each.option_strings], [], prefix)


def complain(message: str) -> int:
    """Say in one line what is wrong; the exit code of a mistake that the user can mend."""
    print(f"grun-bench: {message}", file=sys.stderr)
    return 2


def option(*names: str, **settings: Any) -> Argument:
    """One argument or option, of argparse's own."""
    return lambda parser: parser.add_argument(*names, **settings)


def fields_of(title: str, kind: type, leave_out: Sequence[str] = ()) -> Argument:
    """A group with an option for each field of a dataclass: its docstring is the help, its type gives the choices.

    What the user says stays text, for `from_options` to check; what is not said is not in the namespace.
    """

    def add(parser: Parser) -> None:
        group = parser.add_argument_group(title)
        for name, field in schemas(kind)[kind.__name__]["properties"].items():
            if name not in leave_out:
                group.add_argument(as_option(name), default=argparse.SUPPRESS, **_settings(field))

    return add


def _settings(field: Mapping[str, Any]) -> dict[str, Any]:
    """What argparse is to know of a field of a JSON schema."""
    meaning = " ".join(field["description"].split()).rstrip(".").replace("None: ", "default: ").replace("%", "%%")
    if field.get("type") == "boolean":
        return {"action": "store_true", "help": meaning}
    if field.get("default") is not None:
        meaning = f"{meaning} (default: {field['default']})"
    if "enum" in field:
        return {"choices": field["enum"], "help": meaning}
    return {"metavar": "N" if allowed(field).startswith("whole number") else "X", "help": meaning}


def from_options(kind: type[Kind], options: argparse.Namespace, **given: Any) -> Kind:
    """The dataclass whose fields were made options. Raises UserError naming an option whose value is out of bounds."""
    said = {field.name: vars(options)[field.name] for field in fields(kind) if field.name in vars(options)}  # type: ignore[arg-type]
    return validated(kind, {**said, **given}, as_option)


def as_option(field: str) -> str:
    """`num_workers` as `--num-workers`."""
    return f"--{field.replace('_', '-')}"


def allowed(field: Mapping[str, Any]) -> str:
    """What a field of a JSON schema may be, in words: its kind, its bounds, its choices."""
    return " or ".join(dict.fromkeys(_allowed(field)))


def _allowed(field: Mapping[str, Any]) -> Iterator[str]:
    for alternative in field.get("anyOf", ()):
        yield from _allowed(alternative)
    kind = field.get("type")
    if "enum" in field or "const" in field:
        yield from field.get("enum", [field.get("const")])
    elif kind in ("integer", "number"):
        signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        bounds = ", ".join(f"{sign} {field[bound]:g}" for bound, sign in signs if bound in field)
        yield f"{'whole number' if kind == 'integer' else 'number'} {bounds}".rstrip()
    elif kind == "array":
        items = dict.fromkeys(allowed(item) for item in field.get("prefixItems") or [field["items"]])
        yield f"list of {', '.join(items)}"
    elif kind == "boolean":
        yield "true or false"
    elif kind == "string":
        yield "text"
    elif kind == "null":
        yield "null"


def positive(text: str) -> int:
    """Type of an option that is a count."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def share(text: str) -> float:
    """Type of an option that is a share."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
