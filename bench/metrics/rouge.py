"""How much of the answer a generation repeats."""

from functools import cache
from typing import Any


def rouge_l_recall(answer: str, generation: str) -> float:
    """Longest common subsequence over the answer's words, stemmed, in 0..1: the rouge-score package's recall."""
    return float(_scorer().score(answer, generation)["rougeL"].recall)


def rouge_l_f1(answer: str, generation: str) -> float:
    """The same as F1 of recall and precision, in 0..1: what MUSE (arXiv 2407.06460) reports."""
    return float(_scorer().score(answer, generation)["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
