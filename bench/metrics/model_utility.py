"""What is left of the model: one number for everything that had to be kept."""

from collections.abc import Iterable, Mapping

from scipy.stats import hmean

UTILITY_SPLITS = ("retain", "real_authors", "world_facts")
UTILITY_METRICS = ("probability", "rouge_l_recall", "truth_ratio")


def model_utility(scores: Mapping[str, float]) -> dict[str, float]:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over the splits to be kept.

    scores: `{split}_{metric}` → value in 0..1. With all of TOFU's three splits the result is `model_utility`
    (nine values); a benchmark that lacks some gets `partial_model_utility` over those it has, as the two do not
    compare. A zero anywhere makes the mean 0.
    """
    present = [split for split in UTILITY_SPLITS if f"{split}_probability" in scores]
    name = "model_utility" if present == list(UTILITY_SPLITS) else "partial_model_utility"
    return {name: _harmonic_mean(scores[f"{split}_{metric}"] for split in present for metric in UTILITY_METRICS)}


def _harmonic_mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(hmean(values)) if min(values) > 0 else 0.0
