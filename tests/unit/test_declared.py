"""Components say what they are when they are defined, or not at all."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import pytest

from grun.declared import declares


class _Kind(Protocol):
    name: str
    is_big: ClassVar[bool]
    unit: ClassVar[Literal["tokens"] | None]
    parts: ClassVar[Mapping[str, int]]

    @property
    def layer(self) -> int | None:
        """Of an instance, or of all."""


WHOLE = {"name": "thing", "is_big": True, "unit": None, "parts": {}, "layer": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "words"}, r"Thing\.unit is 'words'; it must be .*'tokens'"),
        ({"parts": ("a",)}, r"Thing\.parts is \('a',\); it must be .*Mapping"),
        ({"is_big": None}, r"Thing\.is_big is None; it must be .*bool"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        declares(_Kind)(type("Thing", (), WHOLE | changes))


@pytest.mark.parametrize("missing", WHOLE)
def test_what_is_missing_is_named(missing: str) -> None:
    said = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(TypeError, match=f"Thing does not say what its {missing} is; see _Kind"):
        declares(_Kind)(type("Thing", (), said))


def test_what_is_whole_is_left_as_it_is() -> None:
    for changes in ({}, {"unit": "tokens"}, {"layer": property(lambda self: 1)}):
        thing = type("Thing", (), WHOLE | changes)
        assert declares(_Kind)(thing) is thing
