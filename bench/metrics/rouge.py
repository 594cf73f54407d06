"""How much of the answer a generation repeats."""

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from bench.splits import About, Metric, Rows


class RougeL(NamedTuple):
    """Longest common subsequence of words, as a share, in 0..1."""

    recall: float
    """Of the answer's words: what TOFU (arXiv 2401.06121) reports."""
    f1: float
    """Harmonic mean of that and of the generation's share: what MUSE (arXiv 2407.06460) reports."""


@lru_cache(maxsize=2**14)  # the same generations are scored at every gate threshold and in every state
def rouge_l(answer: str, generation: str) -> RougeL:
    """The rouge-score package's ROUGE-L, words stemmed."""
    score = _scorer().score(answer, generation)["rougeL"]
    return RougeL(float(score.recall), float(score.fmeasure))


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _recall(rows: Rows, about: About) -> float:
    return float(np.mean([rouge_l(row["answer"], row["generation"]).recall for row in rows]))


def _f1(rows: Rows, about: About) -> float:
    return float(np.mean([rouge_l(row["answer"], row["generation"]).f1 for row in rows]))


ROUGE_L_RECALL = Metric(heading="ROUGE-L", of=_recall)
ROUGE_L_F1 = Metric(heading="ROUGE-L F1", of=_f1)
