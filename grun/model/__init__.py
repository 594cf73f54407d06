"""A causal LM as training and evaluation see it.

torch and transformers are imported here first. With them come 700,000 objects that stay till the process ends: to look
for garbage among them, while they come, later on and at the end, would take a third of what a short process does.
"""

import gc

_was_enabled = gc.isenabled()
gc.collect()  # what is garbage by now would be kept as well
gc.disable()
try:
    import transformers.modeling_utils  # noqa: F401
finally:
    if _was_enabled:
        gc.enable()
gc.freeze()
