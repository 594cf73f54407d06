"""Scores from raw per-item values: pure functions, one file a metric family."""
