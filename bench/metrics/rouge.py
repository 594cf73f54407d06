"""How much of the answer a generation repeats."""

from functools import cache
from typing import Any


def rouge_l_recall(answer: str, generation: str) -> float:
    """Longest common subsequence over the answer's words, stemmed, in 0..1: the rouge-score package's recall."""
    return float(_scorer().score(answer, generation)["rougeL"].recall)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
