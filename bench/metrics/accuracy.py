"""How often the right one of a few answers is the likeliest."""

import math

from bench.splits import About, Metric, Rows


def accuracy(rows: Rows, about: About) -> float:
    """Share of items whose answer has less nll than any wrong one, as lm-evaluation-harness counts: 0..1."""
    return sum(row["answer_nll"] < min(row["wrong_nll"]) for row in rows) / len(rows)


def accuracy_stderr(rows: Rows, about: About) -> float | None:
    """Standard error of that mean, √(p (1 − p) / (n − 1)), as lm-evaluation-harness has it; None of a single item.

    The accuracy ± 1.96 of it is the 95 % confidence interval. Of MMLU lm-evaluation-harness pools its subjects' errors.
    """
    share = accuracy(rows, about)
    return math.sqrt(share * (1 - share) / (len(rows) - 1)) if len(rows) > 1 else None


ACCURACY = Metric(heading="accuracy", of=accuracy)
ACCURACY_STDERR = Metric(heading="accuracy ±", better=None, instead="accuracy", of=accuracy_stderr)
