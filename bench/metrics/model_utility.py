"""What is left of the model: one number for everything that had to be kept."""

import statistics
from collections.abc import Mapping

UTILITY_SPLITS = ("retain", "real_authors", "world_facts")
UTILITY_METRICS = ("probability", "rouge_l_recall", "truth_ratio")


def model_utility(scores: Mapping[str, float]) -> dict[str, float]:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over the splits to be kept.

    scores: `{split}_{metric}` → value in 0..1. With all of TOFU's three splits the result is `model_utility`
    (nine values); a benchmark that lacks some gets `partial_model_utility` over those it has, as the two do not
    compare; without any there is none. A zero anywhere makes the mean 0.
    """
    wanted = [f"{split}_{metric}" for split in UTILITY_SPLITS for metric in UTILITY_METRICS]
    present = [scores[name] for name in wanted if name in scores]
    if not present:
        return {}
    name = "model_utility" if len(present) == len(wanted) else "partial_model_utility"
    return {name: float(statistics.harmonic_mean(present))}
