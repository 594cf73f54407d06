"""Raw rows, one an item → scores. Every score follows from the rows alone, so stored results can be scored anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bench.benchmarks import SPLITS
from bench.metrics import Floats
from bench.metrics.auc import auc
from bench.metrics.forget_quality import forget_quality
from bench.metrics.gates import gate_auc, gate_mean, gate_open_share
from bench.metrics.membership import (
    loss_score,
    min_k_plus_score,
    min_k_score,
    privleak,
    zlib_score,
)
from bench.metrics.memorization import exact_memorization, extraction_strength
from bench.metrics.model_utility import model_utility
from bench.metrics.probability import multiple_choice_probability, probability
from bench.metrics.rouge import rouge_l
from bench.metrics.truth_ratio import (
    forget_truth_ratio,
    log_truth_ratio,
    log_truth_ratio_arithmetic,
    retain_truth_ratio,
)
from bench.results.columns import ItemRow

Rows = Sequence[ItemRow]
MIN_K = 0.2
"""Share of tokens of min-k and min-k++, as open-unlearning."""
PRIVLEAK_K = 0.4
"""Share of tokens of privleak's min-k, as MUSE."""


def score(rows: Rows, retain_model_rows: Rows | None, gate_threshold: float) -> dict[str, float]:
    """Every metric that the rows allow, by column name.

    retain_model_rows: the retain model's rows of the same benchmark; without them there is no forget_quality.
    """
    by_split = _by_split(rows)
    gold = _by_split(retain_model_rows or ())
    scores: dict[str, float] = {}
    for split, members in by_split.items():
        scores |= {f"{split}_{metric}": value for metric, value in _of_split(split, members, gate_threshold).items()}
    scores |= model_utility(scores, [split for split in by_split if SPLITS[split].in_utility])
    if "forget" in by_split:
        if "retain" in by_split and by_split["forget"][0]["gate"] is not None:
            scores["gate_auc"] = gate_auc(_gates(by_split["forget"]), _gates(by_split["retain"]))
        if "forget" in gold and _have_wrong_answers(by_split["forget"]):
            scores["forget_quality"], scores["log10_forget_quality"] = forget_quality(
                _log_truth_ratio(by_split["forget"]), _log_truth_ratio(gold["forget"])
            )
    for split in by_split:
        strangers = SPLITS[split].strangers
        if strangers in by_split:
            scores |= _membership(by_split[split], by_split[strangers], gold.get(split, ()), gold.get(strangers, ()))
    return scores


def _by_split(rows: Rows) -> dict[str, list[ItemRow]]:
    found: dict[str, list[ItemRow]] = {}
    for row in rows:
        found.setdefault(row["split"], []).append(row)
    return found


def _of_split(split: str, members: Rows, gate_threshold: float) -> dict[str, float]:
    """The metrics of the split's kind."""
    kind = SPLITS[split].kind
    if kind == "question":
        scores = _of_questions(split, members)
    elif kind == "choice":
        scores = {"accuracy": _mean(m["answer_nll"] < min(m["wrong_nll"]) for m in members)}
    elif kind == "text":
        scores = {"rouge_l_f1": _mean(rouge_l(m["answer"], m["generation"]).f1 for m in members)}
    else:
        scores = {"rouge_l_recall": _rouge_l_recall(members)}
    if members[0]["gate"] is None:
        return scores
    if kind == "attack":  # the soft gate is never quite shut: there, below one half
        return scores | {"gate_shut_share": 1.0 - gate_open_share(_gates(members), gate_threshold or 0.5)}
    return scores | {
        "gate_mean": gate_mean(_gates(members)),
        "gate_open_share": gate_open_share(_gates(members), gate_threshold),
    }


def _of_questions(split: str, members: Rows) -> dict[str, float]:
    right = _probability(members, "answer")
    if SPLITS[split].among_answers:
        wrong = [probability(np.array(m["wrong_nll"]), np.array(m["wrong_tokens"])) for m in members]
        right = multiple_choice_probability(right, wrong)
    scores = {"probability": float(right.mean()), "rouge_l_recall": _rouge_l_recall(members)}
    if _have_wrong_answers(members):
        log_ratio, log_ratio_arithmetic = _log_truth_ratio(members), _log_truth_ratio(members, arithmetic=True)
        truth_ratio = forget_truth_ratio if SPLITS[split].role == "forgotten" else retain_truth_ratio
        scores |= {
            "truth_ratio": truth_ratio(log_ratio),
            "truth_ratio_arithmetic": truth_ratio(log_ratio_arithmetic),
            "truth_ratio_grun": retain_truth_ratio(log_ratio_arithmetic),
        }
    if _have_tokens(members):
        argmax = [m["token_is_argmax"] for m in members]
        scores["exact_memorization"] = _mean(map(exact_memorization, argmax))
        scores["extraction_strength"] = _mean(map(extraction_strength, argmax))
    return scores


def _rouge_l_recall(rows: Rows) -> float:
    return _mean(rouge_l(row["answer"], row["generation"]).recall for row in rows)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _probability(rows: Rows, kind: str) -> Floats:
    return probability(_column(rows, f"{kind}_nll"), _column(rows, f"{kind}_tokens"))


def _membership(forget: Rows, strangers: Rows, gold_forget: Rows, gold_strangers: Rows) -> dict[str, float]:
    """AUCs of the forget set against what no model has seen. gold: the retain model's rows of the two, if any."""
    if not _have_tokens([*forget, *strangers]):
        return {}
    attacks: dict[str, Callable[[ItemRow], float]] = {
        "mia_loss_auc": lambda row: loss_score(row["token_nll"]),
        "mia_zlib_auc": lambda row: zlib_score(row["token_nll"], row["answer"]),
        "mia_min_k_auc": lambda row: min_k_score(row["token_nll"], MIN_K),
        "mia_min_k_plus_auc": lambda row: min_k_plus_score(
            row["token_nll"], row["token_mean_log_p"], row["token_std_log_p"], MIN_K
        ),
    }
    scores = {name: _auc(forget, strangers, attack) for name, attack in attacks.items()}
    if gold_forget and gold_strangers and _have_tokens([*gold_forget, *gold_strangers]):
        own, others = (
            _auc(members, rest, lambda row: min_k_score(row["token_nll"], PRIVLEAK_K))
            for members, rest in ((forget, strangers), (gold_forget, gold_strangers))
        )
        scores["privleak"] = privleak(own, others)
        scores["abs_privleak"] = abs(scores["privleak"])
    return scores


def _auc(forget: Rows, holdout: Rows, attack: Callable[[ItemRow], float]) -> float:
    return auc(np.array([attack(row) for row in forget]), np.array([attack(row) for row in holdout]))


def _have_wrong_answers(rows: Rows) -> bool:
    return all(row["wrong_nll"] for row in rows)


def _have_tokens(rows: Rows) -> bool:
    return all(row["token_nll"] is not None for row in rows)


def _log_truth_ratio(rows: Rows, arithmetic: bool = False) -> Floats:
    right = "answer" if rows[0]["paraphrase_nll"] is None else "paraphrase"
    definition = log_truth_ratio_arithmetic if arithmetic else log_truth_ratio
    return definition(
        _column(rows, f"{right}_nll"),
        _column(rows, f"{right}_tokens"),
        [np.array(row["wrong_nll"]) for row in rows],
        [np.array(row["wrong_tokens"]) for row in rows],
    )


def _gates(rows: Rows) -> Floats:
    return np.array([row["gate"] for row in rows], dtype=np.float64)


def _column(rows: Rows, name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)
