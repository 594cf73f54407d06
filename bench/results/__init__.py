"""The results folder: what its tables hold, how they are written and read, wherever they lie."""
