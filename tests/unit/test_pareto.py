"""Fronts, hypervolume and knee."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pareto import hypervolume, knee, nondominated, reference_point


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


def test_reference_point_uses_the_metrics_own_worst() -> None:
    values = np.array([[-3.0, 0.5, 12.0]])
    objectives = {"log10_forget_quality": "max", "model_utility": "max", "train_seconds": "min"}
    assert reference_point(values, objectives, -22.7) == [-22.7, 0.0, 12.0]  # type: ignore[arg-type]
    assert reference_point(values[:, 1:2], {"forget_rouge_l_recall": "min"}, None) == [1.0]


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_front_is_what_nobody_beats(rows: list[tuple[int, int]]) -> None:
    """Against the definition, pair by pair."""
    values = np.array(rows, dtype=float)
    for kept, mine in zip(nondominated(values, ["max", "max"]), rows, strict=True):
        beaten = any(o[0] >= mine[0] and o[1] >= mine[1] and o != mine for o in rows)
        assert kept == (not beaten)


@given(points)
def test_hypervolume_only_depends_on_the_front(rows: list[tuple[int, int]]) -> None:
    values = np.array(rows, dtype=float)
    front = values[nondominated(values, ["max", "max"])]
    corner = [-1.0, -1.0]
    assert hypervolume(values, ["max", "max"], corner) == pytest.approx(hypervolume(front, ["max", "max"], corner))
