"""Components say what they are when they are defined, or not at all."""

from typing import ClassVar, Literal, Protocol

import pytest

from grun.declared import declares


class _Kind(Protocol):
    name: str
    is_big: ClassVar[bool]
    unit: ClassVar[Literal["tokens", None]]


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(TypeError, match="_Silent does not say what its unit is; see _Kind"):

        @declares(_Kind)
        class _Silent:
            is_big = True

    with pytest.raises(TypeError, match=r"_Wrong\.unit is 'words'; it must be .*'tokens', None"):

        @declares(_Kind)
        class _Wrong:
            is_big = True
            unit = "words"

    @declares(_Kind)
    class _Whole:
        is_big = False
        unit = None

    assert _Whole.unit is None
