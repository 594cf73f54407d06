"""A frozen model under edits, and the exact shortcuts that its being frozen allows."""
