"""A causal LM as training and evaluation see it."""
