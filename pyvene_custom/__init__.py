"""Edits of hidden states, and what puts them into a model through pyvene. The only package that imports pyvene.

Only `gated_model` imports pyvene, which takes seconds: import it where it is needed. All else is plain torch.
"""
