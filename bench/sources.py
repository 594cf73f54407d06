"""Rows of a benchmark, from JSON files in a folder or from the hub; whatever is wrong with one is a single line."""

import difflib
import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator, Strict
from pydantic_core import PydanticCustomError

from bench.hub.data import HubPart, rows_of_hub
from bench.validation import unknown_key, validated
from grun.errors import UserError
from grun.settings import LocalPath, absolute

FIELD = "benchmark.data_dir"
Kind = TypeVar("Kind")
"""A dataclass with a row's fields: those without a default must be there."""
logger = logging.getLogger(__name__)


def _not_blank(text: str) -> str:
    if all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text):
        raise PydanticCustomError("blank", "is empty; write a text")
    return text


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can say half of an emoji, and no tokenizer can read it
        raise PydanticCustomError("half", "holds half a character; write it whole, or leave it out") from None
    return text


def _not_null(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("null", "is null; leave it out where there is none")
    return value


AnyText = Annotated[str, Strict(), AfterValidator(_whole)]
Text = Annotated[AnyText, AfterValidator(_not_blank)]
Texts = Annotated[list[Text], MinLen(1)]
MaybeText = Annotated[Text | None, BeforeValidator(_not_null)]
"""With the default None. Left out, not null: half a column of nulls is a slip more often than it is meant."""
DataDir = LocalPath
MaybeTexts = Annotated[Texts | None, BeforeValidator(_not_null)]


def has_part(data_dir: str, part: str) -> bool:
    """Whether there is a DATA_DIR/PART.json."""
    return _file(data_dir, part).is_file()


def read_rows(
    kind: type[Kind], part: str, data_dir: str | None, hub: HubPart | None = None, *, closed: bool = False
) -> list[Kind]:
    """The rows of DATA_DIR/PART.json, or of the hub where there is no folder.

    closed: a key that `kind` does not have is refused; else only one that looks like a slip.
    Raises UserError with the file, the line, the field and the fix where one is not what `kind` says, or there is none.
    """
    if data_dir:
        where, noun, found = _from_folder(_file(data_dir, part))
    else:
        assert hub is not None, "a benchmark without a folder is on the hub"
        where, noun, found = str(hub), "row", enumerate(rows_of_hub(hub, FIELD), start=1)
    rows = []
    for number, row in found:
        try:
            rows.append(validated(kind, _mapping(kind, row, closed)))
        except UserError as error:
            raise UserError(FIELD, f"{where}, {noun} {number}: {error}") from None
    if not rows:
        raise UserError(FIELD, f"{where} is empty; write at least one row with {_names(kind)}")
    return rows


def _file(data_dir: str, part: str) -> Path:
    return Path(absolute(data_dir)) / f"{part}.json"


def _mapping(kind: type[Any], row: Any, closed: bool) -> Mapping[str, Any]:
    """A row with known keys; a bare text is the value of the only one. Raises UserError for a key that is a slip."""
    known = [field.name for field in fields(kind)]
    if isinstance(row, str) and len(known) == 1:
        return {known[0]: row}
    if not isinstance(row, Mapping):
        raise UserError("row", f"is no JSON object; write one with {_names(kind)}")
    missing = [name for name in known if name not in row]
    for key in row:
        if key not in known and (closed or difflib.get_close_matches(key, missing, cutoff=0.8)):
            raise UserError(key, unknown_key(key, known))
    for field in fields(kind):
        if field.name in missing and field.default is MISSING:
            raise UserError(field.name, f"is missing; each row needs {_names(kind)}")
    return {name: row[name] for name in known if name in row}


def _names(kind: type[Any]) -> str:
    return " and ".join(field.name for field in fields(kind) if field.default is MISSING)


def _from_folder(file: Path) -> tuple[str, str, Iterable[tuple[int, Any]]]:
    """(file, what a row is called, number and row): of JSON lines, or of one JSON array; no byte order mark."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError:
        raise UserError(FIELD, f"{file} cannot be read; give the folder that holds it") from None
    except UnicodeDecodeError as error:
        raise UserError(FIELD, f"{file} is not UTF-8 (byte {error.start}); save it as that") from None
    if text.lstrip().startswith("["):
        try:
            return str(file), "item", enumerate(json.loads(text), start=1)
        except ValueError as error:
            raise UserError(FIELD, f"{file} begins like a JSON array, but is none ({error})") from None
    return str(file), "line", _lines(file, text)


def _lines(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Only a line feed ends a line: JSON allows U+2028, U+0085 and the like inside a string."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise UserError(
                    FIELD, f"{file}, line {number} is not JSON ({error}); write an object a line, or one array"
                ) from None


@cache
def say(line: str) -> None:
    """Something about the data that is worth knowing, once a process."""
    logger.warning("%s", line)
