"""How much of the answer a generation repeats."""

import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from bench.splits import About, Metric, Rows

WITHOUT_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Beginnings of the Unicode names of letters whose words are not told apart by blanks."""


class RougeL(NamedTuple):
    """Longest common subsequence of words, as a share, in 0..1."""

    recall: float
    """Of the answer's words: what TOFU (arXiv 2401.06121) reports."""
    f1: float
    """Harmonic mean of that and of the generation's share: what MUSE (arXiv 2407.06460) reports."""


@lru_cache(maxsize=2**14)  # the same generations are scored at every gate threshold and in every state
def rouge_l(answer: str, generation: str) -> RougeL:
    """The rouge-score package's ROUGE-L, words stemmed; with words of every script, not of a to z alone."""
    score = _scorer().score(answer, generation)["rougeL"]
    return RougeL(float(score.recall), float(score.fmeasure))


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer(["rougeL"], tokenizer=_Words(DefaultTokenizer(use_stemmer=True)))


class _Words:
    """The package's tokenizer takes every letter but a to z for a blank; here all letters make words, with accents too.

    A word of a to z and digits is the package's own, stem and all, so that English scores equal everybody's.
    """

    def __init__(self, english: Any) -> None:
        self.english = english

    def tokenize(self, text: str) -> list[str]:
        """Words in their order; of scripts written without blanks each character is one."""
        if text.isascii():
            return list(self.english.tokenize(text))
        words: list[str] = []
        for kind, run in groupby(unicodedata.normalize("NFC", text.lower()), _kind):
            word = "".join(run)
            if kind == "without blanks":
                words += word
            elif kind == "word":
                words += self.english.tokenize(word) if word.isascii() else [word]
        return words


def _kind(character: str) -> str:
    """What a character is part of."""
    category = unicodedata.category(character)
    if category[0] not in "LM" and category != "Nd":
        return "between"
    return "without blanks" if unicodedata.name(character, "").startswith(WITHOUT_BLANKS) else "word"


def _recall(rows: Rows, about: About) -> float:
    return float(np.mean([rouge_l(row["answer"], row["generation"]).recall for row in rows]))


def _f1(rows: Rows, about: About) -> float:
    return float(np.mean([rouge_l(row["answer"], row["generation"]).f1 for row in rows]))


ROUGE_L_RECALL = Metric(heading="ROUGE-L", needs="generation", of=_recall)
ROUGE_L_F1 = Metric(heading="ROUGE-L F1", needs="generation", of=_f1)
