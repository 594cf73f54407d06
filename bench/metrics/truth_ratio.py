"""How much likelier wrong answers are than the right one in other words. TOFU, arXiv 2401.06121.

log R = log of the geometric mean of the wrong answers' per-token probabilities, minus the log of the right one's.
GRUN's own definition takes the arithmetic mean, and `retain_truth_ratio` on every split.
Kept as a logarithm: R itself overflows on a model that gradient ascent has wrecked.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from bench.metrics import Floats


def log_truth_ratio(
    right_nll: Floats, right_tokens: Floats, wrong_nll: Sequence[Floats], wrong_tokens: Sequence[Floats]
) -> Floats:
    """log R of each item: [items]. The geometric mean over wrong answers, as open-unlearning computes it.

    right: the paraphrased answer; on real_authors and world_facts the answer itself. nll: token-summed, nats.
    """
    wrong = [np.mean(nll / tokens) for nll, tokens in zip(wrong_nll, wrong_tokens, strict=True)]
    return right_nll / right_tokens - np.array(wrong)


def log_truth_ratio_arithmetic(
    right_nll: Floats, right_tokens: Floats, wrong_nll: Sequence[Floats], wrong_tokens: Sequence[Floats]
) -> Floats:
    """The same with the arithmetic mean of the wrong answers' probabilities."""
    wrong = [logsumexp(-nll / tokens) - math.log(len(nll)) for nll, tokens in zip(wrong_nll, wrong_tokens, strict=True)]
    return np.array(wrong) + right_nll / right_tokens


def forget_truth_ratio(log_ratio: Floats) -> float:
    """mean min(R, 1/R), in 0..1: high where the right answer is as likely as the wrong ones."""
    return float(np.exp(-np.abs(log_ratio)).mean())


def retain_truth_ratio(log_ratio: Floats) -> float:
    """mean max(0, 1 − R), in 0..1: high where the right answer is far likelier than the wrong ones."""
    return float((1.0 - np.exp(np.minimum(log_ratio, 0.0))).mean())
