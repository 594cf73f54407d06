"""Attacks that have the weights: what `training` and an evaluation let an unlearned model stand up to."""
