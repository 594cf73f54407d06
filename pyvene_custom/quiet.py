"""pyvene, imported without what it prints about optional backends."""

import contextlib
import io
import logging

with contextlib.redirect_stdout(io.StringIO()):
    import pyvene

logging.getLogger("pyvene").setLevel(logging.ERROR)

__all__ = ["pyvene"]
