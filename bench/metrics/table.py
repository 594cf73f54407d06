"""Which metrics a split has, by its kind: to add one is to write its file and to name it here."""

from collections.abc import Mapping
from dataclasses import replace

from bench.metrics.accuracy import ACCURACY, ACCURACY_STDERR
from bench.metrics.fluency import FLUENCY
from bench.metrics.gates import GATE_MEAN, GATE_OPEN_SHARE, GATE_SHUT_SHARE
from bench.metrics.memorization import EXACT_MEMORIZATION, EXTRACTION_STRENGTH
from bench.metrics.probability import PROBABILITY
from bench.metrics.rouge import ROUGE_L_F1, ROUGE_L_RECALL
from bench.metrics.truth_ratio import TRUTH_RATIO, TRUTH_RATIO_ARITHMETIC, TRUTH_RATIO_GRUN, TRUTH_RATIO_PROB_MEAN
from bench.splits import Metric, Split

_GATES = {"gate_mean": GATE_MEAN, "gate_open_share": GATE_OPEN_SHARE}
_MEMORIZATION = {"exact_memorization": EXACT_MEMORIZATION, "extraction_strength": EXTRACTION_STRENGTH}
_TEXT = {"rouge_l_f1": ROUGE_L_F1, "rouge_l_recall": ROUGE_L_RECALL, "fluency": FLUENCY, **_GATES}
SPLIT_METRICS: Mapping[str, Mapping[str, Metric]] = {
    "attack": {"rouge_l_recall": ROUGE_L_RECALL, "gate_shut_share": GATE_SHUT_SHARE},
    "question": {
        "probability": PROBABILITY,
        "rouge_l_recall": ROUGE_L_RECALL,
        "truth_ratio": TRUTH_RATIO,
        "truth_ratio_arithmetic": TRUTH_RATIO_ARITHMETIC,
        "truth_ratio_grun": TRUTH_RATIO_GRUN,
        "truth_ratio_prob_mean": TRUTH_RATIO_PROB_MEAN,
        **_MEMORIZATION,
        "fluency": FLUENCY,
        **_GATES,
    },
    "choice": {"accuracy": ACCURACY, "accuracy_stderr": ACCURACY_STDERR, **_GATES},
    "text": _TEXT,
    "passage": {**_TEXT, **_MEMORIZATION},
    "whole": {"probability": PROBABILITY},
}
"""Kind of split → metric → what it is, and how it is made."""


def scores_of(splits: Mapping[str, Split]) -> dict[str, Metric]:
    """Every score of these splits, by column name, each with its own heading and better way."""
    found = {}
    for split, what in splits.items():
        for name, metric in SPLIT_METRICS[what.kind].items():
            better = metric.better
            if metric.turns and what.role == "forgotten":
                better = "min" if better == "max" else "max"
            heading = f"{split.replace('_', ' ')} {metric.heading}"
            found[f"{split}_{name}"] = replace(metric, heading=heading, better=better)
    return found
