"""How far something is: what long work tells whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def quiet(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""
