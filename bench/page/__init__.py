"""The page of a results folder, to explore its runs and to watch them arrive. Imports no model code."""
