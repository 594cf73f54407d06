"""Fronts, hypervolume and knee."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pareto import hypervolume, knee, nondominated


def test_front_by_hand() -> None:
    """Maximise both: (1,3), (2,2), (3,1) stand; (1,1) and (2,1) are beaten; the second (2,2) ties and stays."""
    points = np.array([[1, 3], [2, 2], [3, 1], [1, 1], [2, 1], [2, 2]], dtype=float)
    assert nondominated(points, ["max", "max"]).tolist() == [True, True, True, False, False, True]
    assert nondominated(points, ["min", "max"]).tolist() == [True, False, False, False, False, False]


def test_hypervolume_by_hand() -> None:
    """Staircase (1,3), (2,2), (3,1) above the origin: 3 + 2 + 1 = 6 unit squares."""
    points = np.array([[1, 3], [2, 2], [3, 1]], dtype=float)
    assert hypervolume(points, ["max", "max"], [0, 0]) == pytest.approx(6.0)
    assert hypervolume(-points, ["min", "min"], [0, 0]) == pytest.approx(6.0)
    assert hypervolume(np.zeros((0, 2)), ["max", "max"], [0, 0]) == 0.0


def test_knee_by_hand() -> None:
    """Scaled to 0..1 the middle point is nearest to the ideal corner."""
    points = np.array([[0, 10], [80, 9], [100, 0]], dtype=float)
    assert knee(points, ["max", "max"]) == 1


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_front_is_what_nobody_beats(rows: list[tuple[int, int]]) -> None:
    """Against the definition, pair by pair."""
    values = np.array(rows, dtype=float)
    for kept, mine in zip(nondominated(values, ["max", "max"]), rows, strict=True):
        beaten = any(o[0] >= mine[0] and o[1] >= mine[1] and o != mine for o in rows)
        assert kept == (not beaten)


@given(points)
def test_hypervolume_counts_the_squares_below(rows: list[tuple[int, int]]) -> None:
    """Against the definition: a unit square counts if its far corner is no better than some point in either way."""
    values = np.array(rows, dtype=float)
    below = {(x, y) for a, b in rows for x in range(a) for y in range(b)}
    assert hypervolume(values, ["max", "max"], [0.0, 0.0]) == pytest.approx(len(below))
    assert hypervolume(-values, ["min", "min"], [0.0, 0.0]) == pytest.approx(len(below))


def test_a_point_behind_the_corner_adds_nothing() -> None:
    """(3, 3) above the corner (1, 1) has four squares; (0, 9) is behind it in the first objective."""
    points = np.array([[3.0, 3.0], [0.0, 9.0]])
    assert hypervolume(points, ["max", "max"], [1.0, 1.0]) == pytest.approx(4.0)
