"""Metrics judged by hand-made models: faithfulness, thresholds, what comes back, and what cannot be judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.metrics.meta import harmonic_mean, quantization, relearning, threshold
from bench.reports.judged import CANDIDATES, Measured, Verdict, as_json, chart, judge, knowledge
from bench.results.columns import METRICS

ES = "forget_extraction_strength"
TRUTH_RATIO = "forget_truth_ratio"


def _scores(**given: float) -> dict[str, Any]:
    return dict.fromkeys(METRICS) | given


def _judged(unlearned: list[Measured], retain: Measured) -> dict[str, Verdict]:
    """Two models that know (ES 1 and 0.8) against two that do not (0 and 0.1)."""
    knowing = [_scores(**{ES: 1.0, TRUTH_RATIO: 0.1}), _scores(**{ES: 0.8, TRUTH_RATIO: 0.4})]
    ignorant = [_scores(**{ES: 0.0, TRUTH_RATIO: 0.9}), _scores(**{ES: 0.1, TRUTH_RATIO: 0.4})]
    return {each.metric: each for each in judge(knowing, ignorant, retain, {"all": unlearned})}


def test_the_threshold_calls_most_models_by_their_names() -> None:
    """Between 0.1 and 0.2 four of five are right (0.3 is not), between 0.3 and 0.6 too (0.2 is not): the lower one."""
    assert threshold([0.9, 0.6, 0.2], [0.1, 0.3]) == pytest.approx(0.15)
    assert threshold([0.9, 0.6], [0.1, 0.2]) == pytest.approx(0.4)
    assert threshold([0.5], [0.5]) is None


@pytest.mark.parametrize(
    ("before", "after", "retain_before", "retain_after", "expected"),
    [
        (0.2, 0.6, 0.1, 0.3, 0.5),  # (0.1 − 0.3) / (0.2 − 0.6)
        (0.2, 0.3, 0.1, 0.3, 1.0),  # gains less than a model that never knew: 2, cut at 1
        (0.2, 0.1, 0.1, 0.3, 1.0),  # gains nothing; the quotient would be −2
        (0.2, 0.6, 0.3, 0.2, 0.0),  # it alone gains; the quotient would be −0.25
        (0.2, 0.2, 0.1, 0.1, 1.0),  # nothing moves: 0 / 0
    ],
)
def test_relearning(before: float, after: float, retain_before: float, retain_after: float, expected: float) -> None:
    assert relearning(before, after, retain_before, retain_after) == pytest.approx(expected)


def test_quantization() -> None:
    """What comes back counts against a metric, 0.2 of 0.25; what goes does not; from nothing to something is 0."""
    assert quantization(0.2, 0.25) == pytest.approx(0.8)
    assert quantization(0.25, 0.2) == 1.0
    assert quantization(0.0, 0.0) == 1.0
    assert quantization(0.0, 0.1) == 0.0


def test_harmonic_mean() -> None:
    """2 / (1/0.5 + 1/0.8) = 2 / 3.25; one 0 makes it 0."""
    assert harmonic_mean(0.5, 0.8) == pytest.approx(0.61538, abs=1e-5)
    assert harmonic_mean(0.0, 1.0) == 0.0


def test_knowledge_is_more_of_what_gives_it_away() -> None:
    """More extraction strength knows more; more of TOFU's forget truth ratio, or of forget quality, less."""
    scores = _scores(**{ES: 0.7, TRUTH_RATIO: 0.7, "log10_forget_quality": -3.0, "mia_min_k_auc": 0.6})
    values = [knowledge(name, scores) for name in (ES, TRUTH_RATIO, "log10_forget_quality", "mia_min_k_auc")]
    assert values == pytest.approx([0.7, 0.3, 3.0, 0.6])


def test_a_verdict_by_hand() -> None:
    """ES tells all apart: AUC 1, threshold (0.8 + 0.1) / 2 = 0.45, below which one of two unlearned models is.

    It gains 0.4 where the retain model gains 0.2: R 0.5. In 4 bits 0.2 becomes 0.25: Q 0.8. Their harmonic mean is
    8/13, and that with an AUC of 1 is 2 / (1 + 13/8) = 16/21. The truth ratios 0.1 and 0.4 against 0.9 and 0.4:
    three pairs and a tie of four, 3.5/4 = 0.875.
    """
    forgot: Measured = {
        "before": _scores(**{ES: 0.2}),
        "relearning": _scores(**{ES: 0.6}),
        "4_bit": _scores(**{ES: 0.25}),
    }
    knows: Measured = dict.fromkeys(forgot, _scores(**{ES: 0.9}))
    retain: Measured = {"before": _scores(**{ES: 0.1}), "relearning": _scores(**{ES: 0.3})}
    verdicts = _judged([forgot, knows], retain)
    assert list(verdicts) == [ES, TRUTH_RATIO]
    es, own = verdicts[ES], verdicts[ES].robustness["all"]
    assert (es.faithfulness, es.threshold) == (1.0, pytest.approx(0.45))
    assert (own.num_models, own.num_forgotten) == (2, 1)
    assert (own.relearning, own.quantization) == (pytest.approx(0.5), pytest.approx(0.8))
    assert own.overall == pytest.approx(16 / 21)
    assert verdicts[TRUTH_RATIO].faithfulness == pytest.approx(0.875)
    assert verdicts[TRUTH_RATIO].threshold == pytest.approx(0.65)


def test_what_cannot_be_judged_is_null() -> None:
    """No model that ES takes for having forgotten, none that has a truth ratio; no 4 bits; and it stays valid JSON."""
    knows: Measured = {"before": _scores(**{ES: 0.9}), "relearning": _scores(**{ES: 0.9})}
    verdicts = _judged([knows], {"before": _scores(**{ES: 0.1}), "relearning": _scores(**{ES: 0.3})})
    for metric, num_models in ((ES, 1), (TRUTH_RATIO, 0)):
        own = verdicts[metric].robustness["all"]
        assert (own.num_models, own.num_forgotten) == (num_models, 0)
        assert (own.relearning, own.quantization, own.overall) == (None, None, None)
    forgot: Measured = {"before": _scores(**{ES: 0.2}), "relearning": _scores(**{ES: 0.4})}
    own = _judged([forgot], {"before": _scores(**{ES: 0.1}), "relearning": _scores(**{ES: 0.3})})[ES].robustness["all"]
    assert (own.relearning, own.quantization, own.overall) == (pytest.approx(1.0), None, None)
    assert json.loads(as_json(list(verdicts.values())))[0]["robustness"]["all"]["relearning"] is None
    assert "forget" not in json.dumps(chart(list(verdicts.values())).to_dict()["encoding"]["y"])


def test_only_what_tells_of_the_forget_set_is_judged() -> None:
    """Attacks' answers, likelihoods and membership; neither how fluent it is, nor gates, nor what is kept."""
    assert {ES, "forget_relearned_rouge_l_recall", "log10_forget_quality", "mia_min_k_auc", "wmdp_bio_accuracy"} <= set(
        CANDIDATES
    )
    assert not [name for name in CANDIDATES if "gate" in name or "fluency" in name or "retain" in name]
