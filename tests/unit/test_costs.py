"""What a run is said to have cost."""

import gc
import resource
import subprocess
import sys
import weakref

import pytest
import torch

from bench.runs.costs import peak_memory_gb, reset_peak_memory, settle

CPU = torch.device("cpu")


class Circle:
    """Refers to itself: no count of references brings it to its end."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_before_the_first_run_is_not_looked_through_again() -> None:
    """A collection used to go through all modules before every run; what a run leaves behind is collected still."""
    settle()
    left = weakref.ref(Circle())
    assert left() is not None
    reset_peak_memory(CPU)
    assert left() is None
    num_looked_at = len(gc.get_objects())
    assert gc.get_freeze_count() > 10 * num_looked_at, "modules of torch and the like"


def test_imports_are_not_looked_through_for_garbage() -> None:
    """Nor is a process at its end: 4.8 s of a core to import a run and to end were 2.9 s without it."""
    code = """
import gc
began = []
gc.callbacks.append(lambda phase, info: began.append(info["generation"]) if phase == "start" else None)
import grun.model
print(gc.isenabled(), began.count(2), gc.get_freeze_count() > 10 * len(gc.get_objects()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1", "True"], "one collection, before"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere malloc is another")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    """Tensors of 70 MB, ten times: 17,000 pages, most of which were fetched in every step."""
    settle()
    fetched = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step = [torch.ones(size) for size in (5_000_000, 5_000_000, 5_000_000, 300_000, 2_000_000)]
        fetched.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del step
    assert sum(fetched[5:]) < 5000, fetched


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
