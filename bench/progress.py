"""How far something is: what long work tells whoever shows it."""

import time
from collections.abc import Callable

SPOKEN_EVERY_SECONDS = 10.0
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def quiet(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def now_and_then(progress: Progress, every_seconds: float, *, ends: bool) -> Progress:
    """One that is told no more often, for where being told takes time. ends: but of the end of each phase."""
    last = time.perf_counter()

    def seldom(phase: str, done: int, total: int) -> None:
        nonlocal last
        if (ends and done == total) or time.perf_counter() - last > every_seconds:
            last = time.perf_counter()
            progress(phase, done, total)

    return seldom


def spoken(say: Callable[[str], None]) -> Progress:
    """A `Progress` that says a line now and then, for work whose screen is elsewhere."""
    return now_and_then(lambda phase, done, total: say(f"{phase} {done}/{total}"), SPOKEN_EVERY_SECONDS, ends=False)
