"""How well one number tells two groups apart."""

import numpy as np

from bench.metrics import Floats


def auc(positive: Floats, negative: Floats) -> float:
    """Chance that one of `positive` is larger than one of `negative`, ties half. Each: [members]."""
    from sklearn.metrics import roc_auc_score  # a second of imports

    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))
