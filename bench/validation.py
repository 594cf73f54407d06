"""Plain data as one of our dataclasses: checked by pydantic, its complaints as one line, its fields described."""

import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Tag, TypeAdapter, ValidationError

from grun.errors import UserError

Kind = TypeVar("Kind")


def validated(kind: type[Kind], data: Mapping[str, Any], spelled: Callable[[str], str] = str) -> Kind:
    """Plain data as a `kind`; what is left out takes its default.

    spelled: how the user writes a dotted field. Raises UserError naming the first bad one: what it must be, what it is.
    """
    try:
        return _adapter(kind).validate_python(dict(data))  # type: ignore[arg-type]
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        path, _ = _followed(kind, first["loc"])
        messages = [_message(first, kind)]
        messages += [_message(other, kind) for other in others if _followed(kind, other["loc"])[0] == path]
        problem = " or ".join(dict.fromkeys(messages)) + f" (got {_short(first['input'])})"
        raise UserError(spelled(path), problem) from None


def schemas(kind: type) -> dict[str, Any]:
    """JSON schemas of a dataclass and of all that its fields refer to, by name.

    The docstring under a field is its `description`.
    """
    return _adapter(kind, use_attribute_docstrings=True).json_schema()["$defs"]


@cache
def _adapter(kind: Any, use_attribute_docstrings: bool = False) -> TypeAdapter[Any]:
    """Made once: pydantic takes tens of milliseconds to build it, and more to find docstrings. Refuses unknown keys."""
    # Only a union takes its configuration from outside; a dataclass alone would have to carry it itself.
    either: Any = Union[kind, None]  # noqa: UP007
    return TypeAdapter(
        either,
        config=ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=use_attribute_docstrings),
    )


def _message(error: Any, root: type) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        return unknown_key(str(error["loc"][-1]), _followed(root, error["loc"][:-1])[1])
    if kind == "union_tag_invalid":
        return f"must be one of {context['expected_tags']}"
    text = re.sub(r"^\w+ should", "must", str(error["msg"])).replace("Field required", "is required")
    text = re.sub("a dictionary or an instance of .*", "keys and their values", text).replace(" after validation", "")
    return text.replace("a valid tuple", "a list")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What is wrong with a key that is none of the known ones."""
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; known are {', '.join(known)}" if known else "unknown key; leave it out"


def _followed(root: Any, location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """pydantic's location, followed down from `root`: (dotted, the fields of what lies there).

    The dotted path is without what pydantic slips in, names of union members, and without the places of dataclasses
    in a list, since one may stand for a list of one.
    """
    node, path = root, []
    for part in location:
        members = _members(node)
        if len(members) > 1:
            node = next((member for member in members if _tag(member) == part), None)
            continue
        node = _bare(node)
        if dataclasses.is_dataclass(node):
            node = get_type_hints(node, include_extras=True).get(str(part))
        elif get_args(node):
            node = get_args(node)[-1 if isinstance(part, str) else 0]
            if isinstance(part, int) and any(dataclasses.is_dataclass(_bare(each)) for each in _members(node)):
                continue
        path.append(str(part))
    node = _bare(node)
    return ".".join(path), [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def _members(annotation: Any) -> list[Any]:
    """What a union is made of, without None; the annotation alone where it is no union."""
    while get_origin(annotation) is Annotated and not any(isinstance(m, Tag) for m in annotation.__metadata__):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _bare(annotation: Any) -> Any:
    """A type without its metadata, and without its `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = _members(annotation)
    return annotation if members == [annotation] or len(members) > 1 else _bare(members[0])


def _tag(member: Any) -> str | None:
    """By what pydantic tells a member of a union from the others: its Tag, or the default of its `name`."""
    for mark in getattr(member, "__metadata__", ()):
        if isinstance(mark, Tag):
            return mark.tag
    return getattr(member, "name", None)


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 60 else text[:57] + "…"
