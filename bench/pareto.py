"""Which runs nobody beats: arrays in, arrays out. No model code."""

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from bench.splits import Direction

Floats = NDArray[np.float64]


def nondominated(values_PM: Floats, directions: Sequence[Direction]) -> NDArray[np.bool_]:
    """Which of P points are on the front: [P]. values_PM: one column an objective. Equal points all stay."""
    if len(values_PM) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(_minimised(values_PM, directions), keep_weakly=True))


def hypervolume(values_PM: Floats, directions: Sequence[Direction], reference_point: Sequence[float]) -> float:
    """Volume between the front and the reference point, in the objectives' own units; 0 for no points."""
    if len(values_PM) == 0:
        return 0.0
    reference = _minimised(np.array([reference_point], dtype=np.float64), directions)[0]
    return float(moocore.hypervolume(_minimised(values_PM, directions), ref=reference))


def knee(values_PM: Floats, directions: Sequence[Direction]) -> int:
    """Index of the point nearest to the ideal corner, each objective scaled to the points' own range."""
    minimised = _minimised(values_PM, directions)
    low, high = minimised.min(axis=0), minimised.max(axis=0)
    scaled = (minimised - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(np.linalg.norm(scaled, axis=1)))


def _minimised(values_PM: Floats, directions: Sequence[Direction]) -> Floats:
    return values_PM * np.array([1.0 if direction == "min" else -1.0 for direction in directions])
