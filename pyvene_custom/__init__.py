"""Edits of hidden states, and what puts them into a model through pyvene. The only package that imports pyvene.

`edits` and `checkpoint` are plain torch. `interventions` and `gated_model` import pyvene, which takes seconds: import
them where they are needed.
"""
