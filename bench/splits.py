"""What is evaluated, and what is measured of it: kinds of splits and metrics with their bounds, as plain data.

A benchmark declares its splits (`bench/benchmarks`); the columns of `runs` are these splits times the metrics of their
kinds (`bench.metrics.table`), and the scores of a whole run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One named part of what is evaluated. A name means the same in every benchmark."""

    kind: Literal["question", "choice", "text", "passage", "whole", "attack"]
    """`question`: answered freely, and its answers' likelihoods, as TOFU's; `choice`: the likeliest of a few answers;
    `text`: answered freely, as MUSE's knowledge; `passage`: gone on with, as its verbatim memorization; `whole`: texts
    whose likelihood alone is asked for; `attack`: the forget set asked in another way."""
    role: Literal["forgotten", "kept", "stranger"]
    """What is to become of it; a stranger is of the forget set's kind, and no model was ever trained on it."""
    in_utility: bool = False
    """Whether its probability, ROUGE-L recall and truth ratio enter the harmonic mean of what is to be kept."""
    among_answers: bool = False
    """Whether the probability of a question is the right answer's share of all its answers', as TOFU has it of general
    knowledge."""
    strangers: str | None = None
    """The split that membership inference is to tell this one from."""

    @property
    def is_knowledge(self) -> bool:
        """Whether it asks for what stands in neither the forget nor the retain set as it is asked."""
        return self.among_answers or self.kind in ("choice", "text")


Rows = Sequence[Mapping[str, Any]]
"""Rows of `items`."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the scores of a split depend on beside its rows."""

    split: Split
    gate_threshold: float
    """At or above it a gate is open."""
    texts: tuple[str, ...] = ()
    """Questions and answers of all that was evaluated, and refusals: how a sound model may write."""


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
    needs: str | None = None
    """The column that all of a split's rows must have for it."""
    of: Callable[[Rows, About], float | None] | None = None
    """Makes it of a split's rows, None where they do not allow it. None: it is of a whole run."""


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
    "wmdp_bio_cyber_accuracy": Metric(heading="WMDP accuracy", better="min"),
    "gate_auc": Metric(heading="gate AUC"),
    "mia_loss_auc": Metric(heading="MIA loss AUC", better=None, instead="abs_privleak"),
    "mia_zlib_auc": Metric(heading="MIA zlib AUC", better=None, instead="abs_privleak"),
    "mia_min_k_auc": Metric(heading="MIA min-k AUC", better=None, instead="abs_privleak"),
    "mia_min_k_plus_auc": Metric(heading="MIA min-k++ AUC", better=None, instead="abs_privleak"),
    "mia_reference_auc": Metric(heading="MIA reference AUC", better=None, instead="abs_privleak"),
    "mia_gradnorm_auc": Metric(heading="MIA gradnorm AUC", better=None, instead="abs_privleak"),
    "privleak": Metric(heading="privleak", low=-100.0, high=None, better=None, instead="abs_privleak"),
    "rel_diff": Metric(heading="rel_diff", low=-100.0, high=None, better=None, instead="abs_privleak"),
    "abs_privleak": Metric(heading="|privleak|", high=100.0, better="min"),
}
"""Scores of a run as a whole. The least log10 forget quality depends on how many items are forgotten; privleak,
rel_diff and both min-k take the least likely 40 % of an answer's tokens."""
COSTS: Mapping[str, Metric] = {
    "trainable_parameters": Metric(heading="trainable", high=None, better="min"),
    "train_seconds": Metric(heading="train s", high=None, better="min"),
    "eval_seconds": Metric(heading="eval s", high=None, better="min"),
    "peak_memory_gb": Metric(heading="peak GB", high=None, better="min"),
    "false_openings": Metric(heading="false openings", better="min"),
    "no_set_openings": Metric(heading="openings in no set", better="min"),
}
"""What a run takes; and the share of held-back kept prompts that open a gate, where they chose its gate threshold."""
