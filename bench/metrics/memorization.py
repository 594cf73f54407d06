"""How much of an answer the model can still give word for word, as open-unlearning (arXiv 2506.12618) measures it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bench.metrics.rows import own_tokens
from bench.splits import About, Metric, Rows


def exact_memorization(is_argmax: Sequence[bool]) -> float:
    """Share of an answer's tokens that are the model's first choice, the right ones before given: 0..1."""
    return sum(is_argmax) / len(is_argmax)


def extraction_strength(is_argmax: Sequence[bool]) -> float:
    """1 − k/L, k tokens being the shortest start of the answer from which greedy decoding gives the rest: 0..1.

    0 where none does. With all tokens before it right, greedy decoding gives the rest exactly where every later
    token is the first choice; so k is the place behind the last token that is not. open-unlearning's loop ends one
    token early and gives 1/L where none does.
    """
    misses = [place for place, right in enumerate(is_argmax) if not right]
    k = misses[-1] + 1 if misses else 0
    return 1.0 - k / len(is_argmax)


def _mean(measure: Callable[[Sequence[bool]], float], rows: Rows, about: About) -> float:
    return float(np.mean([measure(own_tokens(row, "token_is_argmax", about.split)) for row in rows]))


EXACT_MEMORIZATION = Metric(heading="EM", needs="token_is_argmax", of=partial(_mean, exact_memorization))
EXTRACTION_STRENGTH = Metric(heading="ES", needs="token_is_argmax", of=partial(_mean, extraction_strength))
