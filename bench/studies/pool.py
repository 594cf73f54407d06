"""What the trials of a command may use, where they fit, and the locks that keep two commands out of one study.

Imports neither torch nor Ray at its top, so that the command line can show the options of `Pool` at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt
from filelock import FileLock, Timeout

from bench.results.storage import Location
from grun.errors import UserError

if TYPE_CHECKING:
    from bench.runs.execution import Execution


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the trials may use."""

    num_concurrent: Annotated[int, Ge(1)] | None = None
    """Trials at once; None: as many as fit."""
    time_budget: Annotated[float, Gt(0)] | None = None
    """Minutes after which no further trial is begun. None: no limit."""
    seconds_per_study: Annotated[float, Gt(0)] | None = None
    """Seconds of training and evaluation, earlier commands' too, after which a study begins no trial. None: no
    limit."""


UNLIMITED = Pool()
"""All that there is, for as long as it takes."""


def place(pool: Pool, execution: "Execution") -> tuple[int, "Execution"]:
    """(trials at once, how a trial's workers run).

    Raises UserError with the numbers where not even what was asked for fits: Ray would wait for ever.
    """
    from bench.cluster.connect import DRIVER, possible_resources  # Ray

    there, num_workers, cpus_each = possible_resources(), execution.num_workers, execution.cpus_per_worker
    if execution.uses_ray_train and not there.get(DRIVER):
        raise UserError(
            "--num-workers", f"the cluster has no resource {DRIVER}; start its head with `{{{DRIVER}: 1000}}`"
        )
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    gpus_each = execution.gpus_per_worker if execution.gpus_per_worker is not None else float(gpus >= 1)
    for option, kind, each, have in (
        ("--gpus-per-worker", "GPU", gpus_each, gpus),
        ("--cpus-per-worker", "CPU", cpus_each, cpus),
    ):
        if each * num_workers > have:
            raise UserError(
                option, f"{num_workers} x {each:g} asked for a trial, but there are {have:g} {kind}s; use fewer"
            )
    fit = int(cpus // (cpus_each * num_workers))
    if gpus_each:
        fit = min(fit, int(gpus / (gpus_each * num_workers)))
    if pool.num_concurrent is not None and pool.num_concurrent > fit:
        raise UserError(
            "--num-concurrent",
            f"{pool.num_concurrent} trials of {num_workers} x ({cpus_each} CPUs, {gpus_each:g} GPUs) "
            f"do not fit {cpus:g} CPUs and {gpus:g} GPUs; use at most {fit}",
        )
    device = "cuda" if gpus_each else execution.device
    worker = replace(execution, num_threads=execution.trial_threads, gpus_per_worker=gpus_each, device=device)
    return pool.num_concurrent or fit, worker


@contextmanager
def study_locks(names: Sequence[str], folder: Location) -> Iterator[None]:
    """Keep a second command out of a study that is running; other studies may share the folder.

    Object stores have no locks: there, it is the user who must not run a study twice at once.
    Raises UserError where a name stands for two studies, or another command runs one of them.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError("study", f"{name} is named twice on this command line; give each file its own study name")
    folder.make_folder()
    with ExitStack() as stack:
        for name in names if folder.local else ():
            try:
                stack.enter_context(FileLock(f"{folder}/.sweep-{name.replace('/', '-')}.lock", timeout=0))
            except Timeout:
                raise UserError("study", f"{name} is being run by another sweep; wait for it") from None
        yield
