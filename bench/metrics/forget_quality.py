"""Can the unlearned model be told from one that never saw the forget set? TOFU, arXiv 2401.06121."""

import math

from bench.metrics import Floats


def forget_quality(unlearned: Floats, retain_model: Floats) -> tuple[float, float]:
    """(p, log10 p) of the two-sample Kolmogorov-Smirnov test on the forget set's truth ratios.

    Takes log ratios: the test only looks at ranks. p is 1 where the samples are the same; log10 p is floored at
    `log10_forget_quality_floor`, below which p cannot go but float rounding could.
    """
    from scipy.stats import ks_2samp  # a second of imports

    p = float(ks_2samp(unlearned, retain_model).pvalue)
    floor = log10_forget_quality_floor(len(unlearned), len(retain_model))
    return p, max(math.log10(p), floor) if p > 0 else floor


def log10_forget_quality_floor(n: int, m: int) -> float:
    """log10 of the p-value of two fully separated samples of n and m: log10(2 / C(n + m, n))."""
    log_choose = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    return (math.log(2) - log_choose) / math.log(10)
