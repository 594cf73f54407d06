"""Configs as plain data, such that a field added later moves no key of a result written before it."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import AfterValidator

LATER: Mapping[str, Any] = {"later": True}
"""`field(default=…, metadata=LATER)`: added after results had been written; at its default all is as it was before it.
`plain_data` leaves it out then, so that keys stay; a result without it reads as one with its default.
"""


def absolute(path: str) -> str:
    """A path as it is written from anywhere; links are not followed, as another node may have others."""
    return os.path.abspath(os.path.expanduser(path))


LocalPath = Annotated[str, MinLen(1), AfterValidator(absolute)]
"""A file or folder, however it was written."""
SHIPPED = "shipped"
LocalOrShipped = Annotated[str, MinLen(1), AfterValidator(lambda path: path if path == SHIPPED else absolute(path))]
"""Likewise, or the word for this project's own."""


def plain_data(value: Any) -> Any:
    """A config as dicts, lists and plain values, without those LATER fields that have their default."""
    if dataclasses.is_dataclass(value):
        own = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: plain_data(part) for field, part in own if not _says_nothing(field, part)}
    if isinstance(value, Mapping):
        return {key: plain_data(part) for key, part in value.items()}
    return type(value)(plain_data(part) for part in value) if isinstance(value, list | tuple) else value


def _says_nothing(field: dataclasses.Field[Any], value: Any) -> bool:
    if not field.metadata.get("later"):
        return False
    factory = field.default_factory
    return bool(value == (field.default if factory is dataclasses.MISSING else factory()))
