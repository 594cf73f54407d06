"""Is it still language? A model that answers with rubbish has forgotten, and the other scores reward it."""

from collections.abc import Collection
from functools import lru_cache

import numpy as np

from bench.splits import About, Metric, Rows

KNOWN_LENGTH = 3
REPEAT_LENGTH = 12


def fluency(text: str, known: Collection[str]) -> float:
    """(share of the text's three-letter sequences that are known) · (share of its 12-letter ones that are distinct).

    known: `sequences_of` the benchmark's own texts. In 0..1, 1 for their like: random letters are unknown, a text that
    goes in circles has few distinct sequences, an empty one is worth 0. The order of whole words is not looked at.
    Letters are characters, so that any script has a fluency; it needs no model, hence no download. Our own measure, in
    place of open-unlearning's gibberish classifier.
    """
    found = sequences_of(text, KNOWN_LENGTH)
    if not text.strip():
        return 0.0
    repeats = sequences_of(text, REPEAT_LENGTH)
    distinct = len(set(repeats)) / len(repeats) if repeats else 1.0
    return distinct * sum(each in known for each in found) / len(found)


def sequences_of(text: str, length: int) -> list[str]:
    """All runs of so many characters, case and width of blanks aside, a blank before and behind the text."""
    plain = f" {' '.join(text.lower().split())} "
    return [plain[start : start + length] for start in range(len(plain) - length + 1)]


def _of_rows(rows: Rows, about: About) -> float:
    known = _known(about.texts)
    return float(np.mean([fluency(row["generation"], known) for row in rows]))


@lru_cache(maxsize=4)  # the splits of a run share their texts
def _known(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(each for text in texts for each in sequences_of(text, KNOWN_LENGTH))


FLUENCY = Metric(heading="fluency", turns=False, of=_of_rows)
