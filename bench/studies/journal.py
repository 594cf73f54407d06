"""Optuna's journal of a results folder: one file that is appended to, for all studies.

It is put into the object store where the results are in one, and read whole after a crash.
"""

import json
import logging
import os
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from bench.content import digest
from bench.models.cache import cache_dir
from bench.results.storage import Folder, Location, location

CREATE_STUDY, CREATE_TRIAL = 0, 4
logger = logging.getLogger(__name__)


def study_storage(results_folder: Folder) -> BaseStorage:
    """Optuna's storage of a results folder; `optuna-dashboard` opens the same file."""
    there, here = _journal(results_folder)
    here.parent.mkdir(parents=True, exist_ok=True)
    if there.local is None and there.exists():
        here.write_bytes(there.read())
    _set_aside_damage(here)
    return JournalStorage(JournalFileBackend(str(here)))


def _set_aside_damage(journal: Path) -> None:
    """Keep what can be read of a journal; the rest goes into a file beside it, and is said.

    A process killed, or out of space, in mid-write leaves half a line, which would spoil the next one.
    """
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
        kept, damaged = _readable(lines)
        if damaged:
            with journal.with_suffix(".damaged").open("ab") as beside:
                beside.writelines(damaged)
            scratch = journal.with_name(f".tmp-{os.getpid()}-{journal.name}")
            scratch.write_bytes(b"".join(kept))
            os.replace(scratch, journal)
            if damaged != lines[-1:] or damaged[0].endswith(b"\n"):  # half a line at the end is how a crash looks
                logger.warning("%s: %d damaged lines of %d set aside", journal, len(damaged), len(lines))
    finally:
        lock.release()


def _readable(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """(kept, set aside): lines that are no JSON objects; and all from where one speaks of a study or trial whose
    beginning was lost, since Optuna counts them as it reads and would take the next one for it.

    The codes of what begins one are Optuna's own: look here again when it is upgraded.
    """
    begun = {"study_id": 0, "trial_id": 0}
    codes = {CREATE_STUDY: "study_id", CREATE_TRIAL: "trial_id"}
    kept: list[bytes] = []
    damaged: list[bytes] = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            damaged.append(line)
            continue
        if damaged and any(entry.get(kind, -1) >= count for kind, count in begun.items()):
            return kept, damaged + lines[number:]
        if entry.get("op_code") in codes:
            begun[codes[entry["op_code"]]] += 1
        kept.append(line)
    return kept, damaged


def keep_journal(results_folder: Folder) -> None:
    """Optuna appends to a file; an object store has none such: a local one is used, and put there after each trial."""
    there, here = _journal(results_folder)
    if there.local is None:
        there.write(here.read_bytes())


def _journal(results_folder: Folder) -> tuple[Location, Path]:
    """Where Optuna's journal is kept, and the local file that Optuna uses."""
    there = location(results_folder) / "studies.journal"
    return there, there.local or cache_dir() / "studies" / f"{digest(str(there))}.journal"
