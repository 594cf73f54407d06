"""A prepared model is made once: by one of several commands, by all workers of a run together, for every node."""

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock

from bench.models.cache import cache_dir, made_once
from bench.results.storage import Location, location
from grun.errors import Damaged, UserError
from grun.workers import Workers

LAST_FILE = "config.json"
"""What stands last where a prepared model is shared."""
logger = logging.getLogger(__name__)


def shared_models() -> Location | None:
    """Where prepared models lie for all nodes, each of which copies one once: $GRUN_BENCH_SHARED; None: nowhere."""
    shared = os.environ.get("GRUN_BENCH_SHARED")
    return location(shared) / "models" if shared else None


def checkpoint_of(name: str) -> Location:
    """Where a making that is cut off leaves what it has: where any node finds it, if there is such a place."""
    return (shared_models() or location(cache_dir() / "models")) / f"{name}.checkpoint"


def prepared_once(name: str, build: Callable[[Path], None], workers: Workers) -> Path:
    """A model's folder in this node's cache, found there, copied from where it is shared, or else built.

    build: fills a folder. Where there are several workers, each calls this, and where the model has to be built each
    calls that, whose folder counts if it is the first one's.
    Raises UserError where workers are on several nodes that share nothing.
    """
    folder, is_built = cache_dir() / "models" / name, False

    def build_together(scratch: Path) -> None:
        nonlocal is_built
        is_built = workers.shared(lambda: True)
        _check_reach(workers)
        build(scratch)

    if workers.is_first:
        if not folder.is_dir():
            made_once(folder, partial(_fetch_or_build, name, build_together))
        if is_built:
            checkpoint_of(name).remove()
        else:
            workers.shared(lambda: False)
    elif workers.shared(lambda: None):
        _check_reach(workers)
        build(folder)
    if workers.size > 1:
        _spread(name, folder, workers)
    return folder


def _check_reach(workers: Workers) -> None:
    """Raises UserError where this worker would not find what the first one makes."""
    host = workers.shared(socket.gethostname)
    if host != socket.gethostname() and shared_models() is None:
        raise _unreached()


def _unreached() -> UserError:
    return UserError(
        "GRUN_BENCH_SHARED", "models are prepared on several nodes; set it to a place that all of them see"
    )


def _spread(name: str, folder: Path, workers: Workers) -> None:
    """From the first worker's node to those of the others."""

    def nowhere(scratch: Path) -> None:
        raise _unreached()

    if workers.is_first and (shared := shared_models()) is not None and not (shared / name / LAST_FILE).exists():
        _share(folder, shared / name)
    workers.shared(lambda: None)  # by now it is there
    if not folder.is_dir():
        made_once(folder, partial(_fetch_or_build, name, nowhere))


def _fetch_or_build(name: str, build: Callable[[Path], None], folder: Path) -> None:
    """From another node's work where that is shared; else made here, and shared."""
    if (shared := shared_models()) is None:
        build(folder)
        return
    there = shared / name
    if _fetched(there, folder):
        return
    with _in_turn(there):
        if not _fetched(there, folder):  # by now
            build(folder)
            _share(folder, there)


def _fetched(there: Location, folder: Path) -> bool:
    """Whether a whole model was found there, and copied."""
    if not (there / LAST_FILE).exists():
        return False
    try:
        with there.read_folder() as found:
            shutil.copytree(found, folder)
    except Damaged as error:
        logger.warning("%s; what was there is kept as %s", error, there.set_aside().name)
        return False
    return True


def _share(folder: Path, there: Location) -> None:
    try:
        with there.written_folder(last=LAST_FILE) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
    except OSError as error:  # hours of training must not be lost for it
        logger.warning("%s; the prepared model is on this node alone", error)


@contextmanager
def _in_turn(there: Location) -> Iterator[None]:
    """While one node makes it the others wait. Object stores have no locks: each makes it there, and the last stays."""
    with ExitStack() as stack:
        if there.local:
            with suppress(OSError):  # a place that cannot be written is said once there is a model to write
                there.parent.make_folder()
                stack.enter_context(FileLock(f"{there}.lock"))
        yield
