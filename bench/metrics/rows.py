"""Columns of item rows as arrays."""

import numpy as np

from bench.metrics import Floats
from bench.splits import Rows


def column(rows: Rows, name: str) -> Floats:
    """One value an item: [items]; of gates [items, layers]."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def lists(rows: Rows, name: str) -> list[Floats]:
    """As many values an item as there are, such as those of its wrong answers."""
    return [np.array(row[name], dtype=np.float64) for row in rows]


def have(rows: Rows, name: str) -> bool:
    """Whether every row has that value, or list of at least one."""
    return all(row[name] is not None and row[name] != [] for row in rows)
