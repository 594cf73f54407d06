"""What a run cost, and what it ran on."""

import contextlib
import ctypes
import gc
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.results import provenance


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring from now. Outside Linux a CPU's peak can only be that of the process's whole life."""
    _keep_what_is_there()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier run freed, glibc keeps
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@cache
def _keep_what_is_there() -> None:
    """Modules above all, which nobody gives back: to look through them for garbage takes a third of a second, before
    each of the runs that follow and now and then within one."""
    gc.collect()
    gc.freeze()


def peak_memory_gb(device: torch.device) -> float:
    """Peak since the reset, in 10^9 bytes: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def machine(device: torch.device) -> dict[str, Any]:
    """What something runs on, as columns of `runs`: `cpu` or the GPU's own name, threads, packages, this code."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "git_sha": provenance.git_sha(),
    }
