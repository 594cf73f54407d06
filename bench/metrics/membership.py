"""Can it still be seen that the forget set was trained on? Membership inference against a holdout set.

Every score is the higher, the more an answer looks like one the model has seen; `auc` of the two sets says how far they
can be told apart: 0.5 not at all, 1 for certain.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from bench.metrics import Floats


def loss_score(token_nll: Sequence[float]) -> float:
    """− mean token nll, nats. Yeom et al., arXiv 1709.01604."""
    return -float(np.mean(token_nll))


def zlib_score(token_nll: Sequence[float], answer: str) -> float:
    """− mean token nll over the answer's length in bytes when compressed. Carlini et al., arXiv 2012.07805."""
    return -float(np.mean(token_nll)) / len(zlib.compress(answer.encode()))


def reference_score(token_nll: Sequence[float], reference_token_nll: Sequence[float]) -> float:
    """How much likelier the answer is than under a reference model: − difference of the mean token nll, nats.

    Carlini et al., arXiv 2012.07805, as a difference (Watson et al., arXiv 2111.08440).
    """
    return float(np.mean(reference_token_nll)) - float(np.mean(token_nll))


def min_k_score(token_nll: Sequence[float], k: float) -> float:
    """Mean log-probability of the least likely share k of the tokens, at least one. Shi et al., arXiv 2310.16789."""
    return float(np.mean(_lowest(-np.asarray(token_nll), k)))


def min_k_plus_score(
    token_nll: Sequence[float], mean_log_p: Sequence[float], std_log_p: Sequence[float], k: float
) -> float:
    """The same of (log p − mean)/std, of what the model would draw itself. Zhang et al., arXiv 2404.02936."""
    deviation = -np.asarray(token_nll) - np.asarray(mean_log_p)
    return float(np.mean(_lowest(deviation / np.maximum(np.asarray(std_log_p), 1e-6), k)))


def privleak(auc: float, retain_model_auc: float) -> float:
    """100 · (A − A_retain) / A_retain with A = 1 − AUC, in per cent. MUSE, arXiv 2407.06460.

    0 is the retain model's; −100 leaks all; above 0 the forget set stands out by being *less* likely than the
    holdout set. Takes the min-k AUCs; 0.5, what tells nothing, stands in for a retain model's.
    """
    other = 1.0 - retain_model_auc
    return 100.0 * ((1.0 - auc) - other) / max(other, 1e-10)


def rel_diff(auc: float, retain_model_auc: float) -> float:
    """100 · (AUC − AUC_retain) / AUC_retain, in per cent, as open-unlearning has it beside privleak."""
    return 100.0 * (auc - retain_model_auc) / max(retain_model_auc, 1e-10)


def _lowest(values: Floats, share: float) -> Floats:
    return np.sort(values)[: max(1, int(share * len(values)))]
