"""How often the right one of a few answers is the likeliest."""

from bench.splits import About, Metric, Rows


def accuracy(rows: Rows, about: About) -> float:
    """Share of items whose answer has less nll than any wrong one, as lm-evaluation-harness counts: 0..1."""
    return sum(row["answer_nll"] < min(row["wrong_nll"]) for row in rows) / len(rows)


ACCURACY = Metric(heading="accuracy", of=accuracy)
