"""What stands in for tensors, texts and caches, so that code runs and nothing is held."""
