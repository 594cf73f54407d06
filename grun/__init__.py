"""GRUN: gated representation unlearning (arXiv 2502.17823) and its baselines, in plain torch."""
