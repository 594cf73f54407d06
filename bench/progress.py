"""How far something is: what long work tells whoever shows it."""

import time
from collections.abc import Callable

SPOKEN_EVERY_SECONDS = 10.0
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def quiet(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def spoken(say: Callable[[str], None]) -> Progress:
    """A `Progress` that says a line now and then, for work whose screen is elsewhere."""
    last = time.perf_counter()

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > SPOKEN_EVERY_SECONDS:
            last = time.perf_counter()
            say(f"{phase} {done}/{total}")

    return progress
