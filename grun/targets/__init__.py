"""What a forget item is made to say while it is being forgotten: one file a target, each a function.

A target is added by writing its file; a forget loss looks at it by naming it in its `targets`.
"""
