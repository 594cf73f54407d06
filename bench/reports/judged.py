"""Which metrics to trust: each judged by models that are known to know the forget set or not. Imports no model code."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from bench.benchmarks import SPLITS
from bench.metrics.auc import auc
from bench.metrics.meta import harmonic_mean, quantization, relearning, threshold
from bench.metrics.table import scores_of
from bench.results.columns import SCORES

Scores = Mapping[str, Any]
"""A row of `runs`, or the scores of one."""
When = Literal["before", "relearning", "4_bit"]
Measured = Mapping[When, Scores]
"""One model as it is, and after something was done to it; what could not be measured is left out."""
UTILITY_KEPT = 0.8
"""A model that lost more of the target's utility is broken, and says nothing of metrics."""
OTHERWISE = ("fluency", "gate_mean", "gate_open_share", "gate_shut_share", "accuracy_stderr")
"""Metrics of a forgotten split that do not claim to tell whether it is known."""
OF_RUN = (
    *("log10_forget_quality", "mia_loss_auc", "mia_zlib_auc", "mia_min_k_auc", "mia_min_k_plus_auc"),
    *("mia_reference_auc", "mia_gradnorm_auc", "abs_privleak"),
)
"""Scores of a run that do. forget_quality, privleak and rel_diff order models as the second-named of them do."""
CANDIDATES = (
    *OF_RUN,
    *(
        name
        for split, what in SPLITS.items()
        if what.role == "forgotten"
        for name in scores_of({split: what})
        if not name.endswith(OTHERWISE)
    ),
)


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """How a metric bears attacks on some unlearned models; None: none of them could be asked."""

    num_models: int
    """Those that keep the utility and have the metric."""
    num_forgotten: int
    """Of these, those that the metric takes for having forgotten: only they are attacked."""
    relearning: float | None
    """Mean R."""
    quantization: float | None
    """Mean Q."""
    overall: float | None
    """Harmonic mean of faithfulness and of the harmonic mean of the two."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One metric judged."""

    metric: str
    faithfulness: float
    """AUC of models that know the forget set against models that do not."""
    threshold: float | None
    """In the metric's own unit: where the two are told apart best."""
    robustness: Mapping[str, Robustness]
    """Kind of model → how it bears attacks: `all`, and `gated`."""


def knowledge(metric: str, scores: Scores) -> float | None:
    """A score as knowledge: turned round where more of it is better of what is to be forgotten."""
    value = scores[metric]
    what = SCORES[metric]
    if value is None or what.better != "max" or what.high is None:
        return value
    return float(what.high - value)


def judge(
    knowing: Sequence[Scores], ignorant: Sequence[Scores], retain: Measured, unlearned: Mapping[str, Sequence[Measured]]
) -> list[Verdict]:
    """A verdict on each metric that both groups have, the most faithful first.

    retain: the model that unlearned ones are measured with. unlearned: kind of model → models that keep their utility.
    """
    verdicts = []
    for metric in CANDIDATES:
        known, unknown = (_all(metric, group) for group in (knowing, ignorant))
        if not known or not unknown:
            continue
        faithfulness, cut = auc(np.array(known), np.array(unknown)), threshold(known, unknown)
        robustness = {kind: _robustness(metric, faithfulness, cut, retain, own) for kind, own in unlearned.items()}
        own_unit = cut if cut is None or SCORES[metric].better != "max" else float(SCORES[metric].high or 0.0) - cut
        verdicts.append(Verdict(metric=metric, faithfulness=faithfulness, threshold=own_unit, robustness=robustness))
    return sorted(verdicts, key=lambda verdict: -verdict.faithfulness)


def _all(metric: str, group: Sequence[Scores]) -> list[float]:
    return [value for scores in group if (value := knowledge(metric, scores)) is not None]


def _robustness(
    metric: str, faithfulness: float, cut: float | None, retain: Measured, models: Sequence[Measured]
) -> Robustness:
    fair = _moved(metric, retain, "relearning")
    asked = [(model, before) for model in models for before in _all(metric, [model["before"]])]
    forgotten = [model for model, before in asked if cut is not None and before < cut]
    relearned = [_moved(metric, model, "relearning") for model in forgotten] if fair else []
    rounded = [_moved(metric, model, "4_bit") for model in forgotten]
    r = _mean(relearning(*moved, *fair) for moved in relearned if moved and fair)
    q = _mean(quantization(*moved) for moved in rounded if moved)
    return Robustness(
        num_models=len(asked),
        num_forgotten=len(forgotten),
        relearning=r,
        quantization=q,
        overall=None if r is None or q is None else harmonic_mean(faithfulness, harmonic_mean(r, q)),
    )


def _moved(metric: str, model: Measured, attack: When) -> tuple[float, float] | None:
    """Knowledge before and after; None where one of them could not be measured."""
    values = _all(metric, [model[when] for when in ("before", attack) if when in model])
    return (values[0], values[1]) if len(values) == 2 else None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.mean(found) if found else None


def as_json(verdicts: Sequence[Verdict]) -> str:
    """A list of verdicts, for other programs."""
    return json.dumps([asdict(verdict) for verdict in verdicts], indent=2, allow_nan=False)


def chart(verdicts: Sequence[Verdict]) -> Any:
    """A line a metric, a mark for faithfulness and for each attack; a panel a kind of model."""
    marks = [
        {"metric": heading(verdict.metric), "models": kind, "what": what, "value": value}
        for verdict in verdicts
        for kind, found in verdict.robustness.items()
        for what, value in (
            ("faithfulness", verdict.faithfulness),
            ("relearning R", found.relearning),
            ("quantization Q", found.quantization),
        )
        if value is not None
    ]
    drawn = alt.Chart(pl.DataFrame(marks, schema={"metric": str, "models": str, "what": str, "value": float}))
    return (
        drawn.mark_point(filled=True, size=70, opacity=0.8)
        .encode(
            x=alt.X("value:Q", title=None, scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("metric:N", title=None, sort=[heading(verdict.metric) for verdict in verdicts]),
            color=alt.Color("what:N", title=None),
            shape=alt.Shape("what:N", title=None),
            column=alt.Column("models:N", title="unlearned models"),
        )
        .properties(width=300)
    )


def heading(metric: str) -> str:
    """What people call it; that it is of the forget set need not be said."""
    return SCORES[metric].heading.removeprefix("forget ") if metric not in OF_RUN else SCORES[metric].heading
