"""Gated interventions on top of pyvene; the only package here that imports it.

Importing pyvene takes seconds and prints about optional backends, so it happens here, once and quietly, and
everything else imports this package only where it needs it.
"""

import contextlib
import io
import logging

with contextlib.redirect_stdout(io.StringIO()):
    import pyvene

logging.getLogger("pyvene").setLevel(logging.ERROR)

__all__ = ["pyvene"]
