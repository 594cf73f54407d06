"""Scores from raw per-item values: pure functions, one file a metric family."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
