"""Configs as plain data."""

from dataclasses import asdict, dataclass, field

from grun.settings import LATER, plain_data


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1
    shape: str = field(default="round", metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class Outer:
    layers: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    more: Inner | None = field(default=None, metadata=LATER)
    parts: tuple[Inner, ...] = field(default_factory=lambda: (Inner(),), metadata=LATER)


def test_a_field_added_later_is_left_out_at_its_default_wherever_it_stands() -> None:
    """Without what came later, all is as it was; every other value of it is there, of whatever type."""
    assert plain_data(Outer()) == {"layers": (1, 2), "inner": {"size": 1}}
    changed = Outer(inner=Inner(shape="flat"), more=Inner(size=2), parts=())
    assert plain_data(changed) == {
        "layers": (1, 2),
        "inner": {"size": 1, "shape": "flat"},
        "more": {"size": 2},
        "parts": (),
    }


def test_a_field_that_was_always_there_stays_at_its_default() -> None:
    assert plain_data(Inner(size=1)) == {"size": 1}
    assert asdict(Inner()) == {"size": 1, "shape": "round"}
