"""Do the gates open for the forget set, and only for it?"""

from bench.metrics import Floats
from bench.metrics.auc import auc


def gate_mean(gates: Floats) -> float:
    """Mean gate over prompts and layers, in 0..1. gates: [prompts, layers]."""
    return float(gates.mean())


def gate_open_share(gates: Floats, gate_threshold: float) -> float:
    """Share of prompts with a gate at or above the threshold at any layer. gates: [prompts, layers]."""
    return float((gates >= gate_threshold).any(axis=1).mean())


def gate_auc(forget: Floats, retain: Floats) -> float:
    """Chance that a forget prompt's gates (mean over layers) are more open than a retain prompt's, ties half."""
    return auc(forget.mean(axis=1), retain.mean(axis=1))
