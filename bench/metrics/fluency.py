"""Is it still language? A model that answers with rubbish has forgotten, and the other scores reward it."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bench.splits import About, Metric, Rows

KNOWN_LENGTH = 3
REPEAT_LENGTH = 12
WINDOW = 4
COMMON_SHARE = 0.01


class Language(NamedTuple):
    """What some texts are made of."""

    sequences: Collection[str]
    """Their three-letter sequences (`sequences_of`)."""
    common: Collection[str]
    """Words in one of a hundred of them, and in two at least."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Language":
        """That of the benchmark's own texts."""
        counts = Counter(word for text in texts for word in set(_words(text)))
        least = max(2, COMMON_SHARE * len(texts))
        return cls(
            frozenset(each for text in texts for each in sequences_of(text, KNOWN_LENGTH)),
            frozenset(word for word, count in counts.items() if count >= least),
        )


def fluency(text: str, language: Language) -> float:
    """Three shares, multiplied, in 0..1; 1 for the like of the language's texts, 0 for an empty one. Of the text's

    - three-letter sequences, those that are known: random letters are not;
    - runs of four words, those with a common word: a salad of rare words and pieces of words has none;
    - twelve-letter sequences, those that are distinct: few are, where a text goes in circles.

    A text is not asked what it is too short for. Letters are characters, so that any script has a fluency; it needs no
    model, hence no download. Sound words in a senseless order are not seen. Our own measure, in place of
    open-unlearning's gibberish classifier.
    """
    if not text.strip():
        return 0.0
    words, repeats = _words(text), sequences_of(text, REPEAT_LENGTH)
    runs = [words[start : start + WINDOW] for start in range(len(words) - WINDOW + 1)]
    known = [each in language.sequences for each in sequences_of(text, KNOWN_LENGTH)]
    common = [any(word in language.common for word in run) for run in runs]
    distinct = len(set(repeats)) / len(repeats) if repeats else 1.0
    return float(np.mean(known)) * (float(np.mean(common)) if common else 1.0) * distinct


def sequences_of(text: str, length: int) -> list[str]:
    """All runs of so many characters, case and width of blanks aside, a blank before and behind the text."""
    plain = f" {' '.join(text.lower().split())} "
    return [plain[start : start + length] for start in range(len(plain) - length + 1)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _of_rows(rows: Rows, about: About) -> float:
    language = _language(about.texts)
    return float(np.mean([fluency(row["generation"], language) for row in rows]))


_language = lru_cache(maxsize=4)(Language.of)  # the splits of a run share their texts
FLUENCY = Metric(heading="fluency", turns=False, needs="generation", of=_of_rows)
