"""A causal LM as it comes: what goes in, what is read off, what it keeps, and its greedy answers."""
