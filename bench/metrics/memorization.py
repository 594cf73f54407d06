"""How much of an answer the model can still give word for word, as open-unlearning measures it."""

from collections.abc import Sequence


def exact_memorization(is_argmax: Sequence[bool]) -> float:
    """Share of an answer's tokens that are the model's first choice, the right ones before given: 0..1."""
    return sum(is_argmax) / len(is_argmax)


def extraction_strength(is_argmax: Sequence[bool]) -> float:
    """1 − k/L, k tokens being the shortest start of the answer from which greedy decoding gives the rest: 0..1.

    0 where none does. With all tokens before it right, greedy decoding gives the rest exactly where every later
    token is the first choice; so k is the place behind the last token that is not.
    """
    misses = [place for place, right in enumerate(is_argmax) if not right]
    k = misses[-1] + 1 if misses else 0
    return 1.0 - k / len(is_argmax)
