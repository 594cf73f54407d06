"""Optuna's journal of a results folder: one file that is appended to, for all studies.

It is put into the object store where the results are in one, and read whole after a crash.
"""

from __future__ import annotations

import os
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from bench.models.cache import cache_dir
from bench.results.storage import Folder, Location, location


def study_storage(results_folder: Folder) -> BaseStorage:
    """Optuna's storage of a results folder; `optuna-dashboard` opens the same file."""
    there, here = _journal(results_folder)
    here.parent.mkdir(parents=True, exist_ok=True)
    if there.local is None and there.exists():
        here.write_bytes(there.read())
    _drop_half_a_line(here)
    return JournalStorage(JournalFileBackend(str(here)))


def _drop_half_a_line(journal: Path) -> None:
    """A process killed, or out of space, in mid-write leaves some: it would spoil the next line."""
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        content = journal.read_bytes() if journal.is_file() else b"\n"
        if content and not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def keep_journal(results_folder: Folder) -> None:
    """Optuna appends to a file; an object store has none such: a local one is used, and put there after each trial."""
    there, here = _journal(results_folder)
    if there.local is None:
        there.write(here.read_bytes())


def _journal(results_folder: Folder) -> tuple[Location, Path]:
    """Where Optuna's journal is kept, and the local file that Optuna uses."""
    there = location(results_folder) / "studies.journal"
    return there, there.local or cache_dir() / "studies" / f"{there.digest()}.journal"
