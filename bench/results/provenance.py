"""What code a result was made by: versions and commit, found out without importing any of it."""

import contextlib
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("grun-bench", "torch", "transformers", "peft", "pyvene", "ray", "optuna")


@cache
def versions() -> str:
    """Versions of Python and of the packages that decide a result, as JSON."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return json.dumps(found)


@cache
def git_sha() -> str | None:
    """Commit of this code, `-dirty` where it has been changed since; None outside a git checkout."""
    git = ["git", "-C", os.path.dirname(__file__)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{sha}-dirty" if changed.strip() else sha
