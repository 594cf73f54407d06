"""The Hugging Face hub: which commits are read of it, and rows of its data sets."""
