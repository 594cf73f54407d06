"""What a run is said to have cost."""

import sys

import pytest
import torch

from bench.runs.costs import peak_memory_gb, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is that of the process's whole life")
def test_a_peak_is_of_what_came_after_the_reset() -> None:
    """Half a gigabyte in pieces that the allocator keeps once they are freed, as a trial leaves it to the next."""
    reset_peak_memory(CPU)
    before = peak_memory_gb(CPU)
    pieces = [torch.ones(25_000) for _ in range(5000)]
    behind = torch.ones(25_000)  # so that what is freed lies in the middle
    assert peak_memory_gb(CPU) > before + 0.45
    del pieces
    reset_peak_memory(CPU)
    assert peak_memory_gb(CPU) < before + 0.1
    assert len(behind) == 25_000
