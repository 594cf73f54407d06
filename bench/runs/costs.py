"""What a run cost, and what it ran on."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.results import provenance

KEPT = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 512 << 20),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
    "MALLOC_MMAP_THRESHOLD_": (-3, 64 << 20),
}
"""Environment variable → its number in glibc's malloc.h, and bytes where it is not set: what a step of a small model
frees is there for the next, where else every page would be fetched anew (7 % of a trial of the tiny model)."""


@cache
def settle() -> None:
    """Once a process, before its first run.

    What is there by now stays till the end, modules above all, and not only those that `grun.model` begins with: no
    collection looks through it again, before a run that follows or within one. And the C library's memory is kept, as
    far as KEPT says.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        for name, (number, size) in KEPT.items():
            if name not in os.environ:
                ctypes.CDLL(None).mallopt(number, size)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring from now. Outside Linux a CPU's peak can only be that of the process's whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier run freed, glibc keeps
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


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
