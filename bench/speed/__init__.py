"""`grun-bench benchmark`: what GRUN costs on this machine, side by side with what it is compared to."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

SECTIONS = ("steps", "cache", "evaluation", "fine_tuned", "latched", "memory", "sweep")
"""What is measured, in turn."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long is measured."""

    rounds: Annotated[int, Ge(1)] = 5
    """Turns of every contender."""
    steps: Annotated[int, Ge(1)] = 5
    """Timed steps a turn; one more before them is not counted."""
    num_trials: Annotated[int, Ge(0)] = 16
    """Trials of the sweep; 0: no sweep."""
