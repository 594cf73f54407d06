"""What is left of the model: one number for everything that had to be kept. TOFU, arXiv 2401.06121."""

import statistics
from collections.abc import Mapping, Sequence

UTILITY_METRICS = ("probability", "rouge_l_recall", "truth_ratio")
TOFU_SPLITS = {"retain", "real_authors", "world_facts"}


def model_utility(scores: Mapping[str, float], splits: Sequence[str]) -> dict[str, float]:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over the splits to be kept.

    scores: `{split}_{metric}` → value in 0..1. Over TOFU's three splits, all nine values there, the result is
    `model_utility`; of other splits it is `partial_model_utility`, as the two do not compare. There is none without
    values, nor of TOFU's three splits where one of the nine was not measured. A zero anywhere makes the mean 0.
    """
    wanted = [f"{split}_{metric}" for split in splits for metric in UTILITY_METRICS]
    present = [scores[name] for name in wanted if name in scores]
    is_tofus = set(splits) == TOFU_SPLITS
    if not present or (is_tofus and len(present) < len(wanted)):
        return {}
    return {"model_utility" if is_tofus else "partial_model_utility": float(statistics.harmonic_mean(present))}
