"""Do the gates open for the forget set, and only for it?"""

from bench.metrics import Floats
from bench.metrics.auc import auc
from bench.metrics.rows import column
from bench.splits import About, Metric, Rows


def gate_mean(gates: Floats) -> float:
    """Mean gate over prompts and layers, in 0..1. gates: [prompts, layers]."""
    return float(gates.mean())


def gate_open_share(gates: Floats, gate_threshold: float) -> float:
    """Share of prompts with a gate at or above the threshold at any layer. gates: [prompts, layers]."""
    return float((gates >= gate_threshold).any(axis=1).mean())


def gate_auc(forget: Floats, retain: Floats) -> float:
    """Chance that a forget prompt's gates (mean over layers) are more open than a retain prompt's, ties half."""
    return auc(forget.mean(axis=1), retain.mean(axis=1))


def _mean(rows: Rows, about: About) -> float:
    return gate_mean(column(rows, "gate"))


def _open_share(rows: Rows, about: About) -> float:
    return gate_open_share(column(rows, "gate"), about.gate_threshold)


def _shut_share(rows: Rows, about: About) -> float:
    """The soft gate is never quite shut: there, below one half."""
    return 1.0 - gate_open_share(column(rows, "gate"), about.gate_threshold or 0.5)


GATE_MEAN = Metric(heading="mean gate", better="min", needs="gate", of=_mean)
GATE_OPEN_SHARE = Metric(heading="share of prompts that open a gate", better="min", needs="gate", of=_open_share)
GATE_SHUT_SHARE = Metric(heading="share of prompts that open no gate", needs="gate", of=_shut_share)
