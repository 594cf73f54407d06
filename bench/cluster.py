"""Ray: the cluster that is there, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

DRIVER = "tune_driver"
"""Resource of a process that only waits for its workers: it needs no CPU, but Ray wants it to need something."""
DRIVERS = 1000
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
"""No tables, phoning home or log files of Ray's own, and workers that find relative paths as the driver does."""


@contextmanager
def connected(log: Callable[[str], None]) -> Iterator[None]:
    """The cluster at RAY_ADDRESS, else one on this machine."""
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    log(f"joining Ray at {address}" if address else "starting Ray")
    there = {} if address else {"resources": {DRIVER: DRIVERS}}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **there)
    try:
        yield
    finally:
        ray.shutdown()
