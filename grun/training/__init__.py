"""What is trained on, in which order, against which untouched values: the loop and what it needs."""
