"""How good is a metric? Meta-evaluation as in open-unlearning's paper, arXiv 2506.12618.

A metric's value is given as knowledge: the more, the more a model seems to know of the forget set.
Faithfulness is the `auc` of models that know it against models that do not. Robustness asks, of models that a metric
takes for having forgotten, whether what comes back by relearning or by rounding was there for it to see.
"""

from collections.abc import Sequence

import numpy as np


def threshold(knowing: Sequence[float], ignorant: Sequence[float]) -> float | None:
    """The knowledge from which on a model counts as knowing: what calls most of both groups by their names.

    Halfway between two values seen; of equals the lowest. None where all values are the same.
    """
    values = np.unique([*knowing, *ignorant])
    between = (values[1:] + values[:-1]) / 2
    right = [np.sum(np.array(knowing) >= cut) + np.sum(np.array(ignorant) < cut) for cut in between]
    return float(between[int(np.argmax(right))]) if right else None


def relearning(before: float, after: float, retain_before: float, retain_after: float) -> float:
    """R: what the retain model gains by relearning the forget set over what the unlearned model gains, at most 1.

    (retain before − after) / (before − after) in the paper. 1 also where the unlearned model gains nothing, and 0 where
    it alone gains: the paper's quotient has a sign there that means nothing.
    """
    gain, fair_gain = after - before, max(retain_after - retain_before, 0.0)
    return 1.0 if gain <= fair_gain else fair_gain / gain


def quantization(before: float, after: float) -> float:
    """Q: knowledge before the weights are rounded over knowledge after it, at most 1; 1 where nothing is left of it.

    What comes back counts against a metric.
    """
    return 1.0 if after <= before else max(before, 0.0) / after


def harmonic_mean(*values: float) -> float:
    """0 where one of them is."""
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0
