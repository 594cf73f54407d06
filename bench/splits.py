"""What is evaluated, and what is measured of it: kinds of splits and metrics with their bounds, as plain data.

A benchmark declares its splits (`bench/benchmarks`); the columns of `runs` are these splits times the metrics of their
kinds, and the scores of a whole run (`bench.results.columns`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One named part of what is evaluated. A name means the same in every benchmark."""

    kind: Literal["question", "choice", "text", "attack"]
    """`question`: answered freely, and its answers' likelihoods, as TOFU's; `choice`: the likeliest of a few answers;
    `text`: answered or continued freely, as MUSE's; `attack`: the forget set asked in another way."""
    role: Literal["forgotten", "kept", "stranger"]
    """What is to become of it; a stranger is of the forget set's kind, and no model was ever trained on it."""
    in_utility: bool = False
    """Whether its probability, ROUGE-L recall and truth ratio enter the harmonic mean of what is to be kept."""
    among_answers: bool = False
    """Whether the probability of a question is the right answer's share of all its answers', as TOFU has it of general
    knowledge."""
    strangers: str | None = None
    """The split that membership inference is to tell this one from."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that models are told apart by."""

    heading: str
    """What people call it."""
    low: float | None = 0.0
    """Nothing is below it; None: no bound, or one that depends on the data."""
    high: float | None = 1.0
    """Nothing is above it, or counts as better or worse for being so."""
    better: Direction | None = "max"
    """Which way is better of what is to be kept; None: neither, so that it is no objective."""
    turns: bool = True
    """Whether the other way is better of what is to be forgotten."""
    instead: str | None = None
    """What to optimise in place of a metric that is no objective."""


_GATES = {
    "gate_mean": Metric(heading="mean gate", better="min"),
    "gate_open_share": Metric(heading="share of prompts that open a gate", better="min"),
}
SPLIT_METRICS: Mapping[str, Mapping[str, Metric]] = {
    "attack": {
        "rouge_l_recall": Metric(heading="ROUGE-L"),
        "gate_shut_share": Metric(heading="share of prompts that open no gate"),
    },
    "question": {
        "probability": Metric(heading="probability"),
        "rouge_l_recall": Metric(heading="ROUGE-L"),
        "truth_ratio": Metric(heading="truth ratio", turns=False),
        "truth_ratio_arithmetic": Metric(heading="arithmetic truth ratio", turns=False),
        "truth_ratio_grun": Metric(heading="GRUN's truth ratio"),
        "exact_memorization": Metric(heading="EM"),
        "extraction_strength": Metric(heading="ES"),
        **_GATES,
    },
    "choice": {"accuracy": Metric(heading="accuracy"), **_GATES},
    "text": {"rouge_l_f1": Metric(heading="ROUGE-L F1"), **_GATES},
}
"""Kind of split → metric → what it is."""
QUESTION_SPLITS: Mapping[str, Split] = {
    "forget": Split(kind="question", role="forgotten", strangers="holdout"),
    "retain": Split(kind="question", role="kept", in_utility=True),
    "holdout": Split(kind="question", role="stranger"),
}
"""What every benchmark of questions may evaluate."""
QUESTION_HEADLINES = ("forget_rouge_l_recall", "retain_rouge_l_recall", "forget_relearned_rouge_l_recall")
"""What to show of a run on it, beside its objectives."""
KNOWLEDGE_SPLITS: Mapping[str, Split] = {
    name: Split(kind="question", role="kept", in_utility=True, among_answers=True)
    for name in ("real_authors", "world_facts")
}
"""TOFU's two splits of general knowledge."""
ATTACKS: Mapping[str, Split] = {
    f"forget_{attack}": Split(kind="attack", role="forgotten")
    for attack in ("paraphrased_question", "prefix_attack", "8_bit", "4_bit", "relearned")
}
"""Splits of the rows that `bench.evaluation.robustness` writes, of any benchmark with a split `forget`."""
RUN_METRICS: Mapping[str, Metric] = {
    "forget_quality": Metric(heading="forget quality"),
    "log10_forget_quality": Metric(heading="log10 forget quality", low=None, high=0.0),
    "model_utility": Metric(heading="model utility"),
    "partial_model_utility": Metric(heading="partial model utility"),
    "gate_auc": Metric(heading="gate AUC"),
    "mia_loss_auc": Metric(heading="MIA loss AUC", better="min"),
    "mia_zlib_auc": Metric(heading="MIA zlib AUC", better="min"),
    "mia_min_k_auc": Metric(heading="MIA min-k AUC", better="min"),
    "mia_min_k_plus_auc": Metric(heading="MIA min-k++ AUC", better="min"),
    "privleak": Metric(heading="privleak", low=-100.0, high=None, better=None, instead="abs_privleak"),
    "abs_privleak": Metric(heading="|privleak|", high=100.0, better="min"),
}
"""Scores of a run as a whole. The least log10 forget quality depends on how many items are forgotten."""
COSTS: Mapping[str, Metric] = {
    "trainable_parameters": Metric(heading="trainable", high=None, better="min"),
    "train_seconds": Metric(heading="train s", high=None, better="min"),
    "eval_seconds": Metric(heading="eval s", high=None, better="min"),
    "peak_memory_gb": Metric(heading="peak GB", high=None, better="min"),
}
"""What a run takes."""


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
