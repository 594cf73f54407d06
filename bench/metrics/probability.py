"""How likely the model holds an answer, per token."""

from collections.abc import Sequence

import numpy as np

from bench.metrics import Floats
from bench.metrics.rows import column, counts, have, lists
from bench.splits import About, Metric, Rows


def probability(nll: Floats, num_tokens: Floats) -> Floats:
    """exp(−nll / n) of each item: [items], in 0..1. nll: token-summed, nats. TOFU, arXiv 2401.06121."""
    return np.exp(-nll / num_tokens)


def multiple_choice_probability(answer: Floats, wrong: Sequence[Floats]) -> Floats:
    """p / (p + Σ wrong p) of each item: [items]. TOFU's probability on real_authors and world_facts.

    answer: per-token probabilities; wrong: those of each item's wrong answers.
    An item whose answers are all beyond float range counts as chance: 1 / number of answers.
    """
    total = np.array([right + others.sum() for right, others in zip(answer, wrong, strict=True)])
    chance = np.array([1.0 / (1 + len(others)) for others in wrong])
    return np.where(total > 0, answer / np.where(total > 0, total, 1.0), chance)


def _of_rows(rows: Rows, about: About) -> float | None:
    right = probability(column(rows, "answer_nll"), np.array(counts(rows, "answer")))
    if about.split.among_answers:
        if not have(rows, "wrong_nll"):
            return None
        wrong = map(probability, lists(rows, "wrong_nll"), counts(rows, "wrong"))
        right = multiple_choice_probability(right, list(wrong))
    return float(right.mean())


PROBABILITY = Metric(heading="probability", needs="answer_nll", of=_of_rows)
