"""This node's own copies of what is worth making only once: prepared models, unpacked ones, prefixes, journals."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from bench.results.storage import is_full
from grun.errors import UserError

DEFAULT_CACHE_GB = 20.0
"""Size of all prefix caches of a node together, unless $GRUN_BENCH_CACHE_GB says otherwise."""


def cache_dir() -> Path:
    """$GRUN_BENCH_CACHE, else ~/.cache/grun-bench; empty is not set."""
    return Path(os.environ.get("GRUN_BENCH_CACHE") or "~/.cache/grun-bench").expanduser()


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache; whichever process comes first makes it, the others wait and find it.

    make: fills a folder it is given, which is then moved into place: a half-made one is never found, nor left behind.
    Raises UserError where the cache cannot be written, or is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                scratch = folder.with_suffix(".tmp")  # its own, under the lock; a killed one's goes
                shutil.rmtree(scratch, ignore_errors=True)
                try:
                    make(scratch)
                    os.replace(scratch, folder)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError("GRUN_BENCH_CACHE", f"{error.filename} is not writable; set it to a folder that is") from error
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise UserError("GRUN_BENCH_CACHE", f"no space is left in {cache_dir()}; free some, or set another") from error
    return folder


def max_cache_gb() -> float:
    """$GRUN_BENCH_CACHE_GB, else its default. Raises UserError where that is no number."""
    text = os.environ.get("GRUN_BENCH_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_CACHE_GB
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise UserError("GRUN_BENCH_CACHE_GB", f"{text!r} is not a number of gigabytes; write one, such as 20")
    return gigabytes
