"""How a sweep scales: Tune, Optuna and Parquet as they are, on simulated nodes, with a no-op in place of a run.

    python -m bench.speed.scaling nodes 1 2 4 8 16     # wider and wider Ray clusters, all on this machine
    python -m bench.speed.scaling ask 1000             # Optuna alone, as its study grows
    python -m bench.speed.scaling rows 10000           # Parquet alone: write, read, compact, read
    python -m bench.speed.scaling soak 1000            # one long sweep; workers and driver are killed again and again

Prints Markdown tables; docs/scaling.md is made of them.
"""

import argparse
import contextlib
import json
import random
import signal
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import TrialState

from bench.config import run_config
from bench.results import store
from bench.runs.execution import Execution
from bench.spaces.search_space import SweepConfig, read_studies
from bench.speed.scaling.no_op import no_op, no_op_references, no_op_rows
from bench.speed.scaling.simulated import MB, cluster, start_driver, watched
from bench.speed.stopwatch import timed
from bench.studies.journal import study_storage
from bench.studies.pool import Pool
from bench.studies.search import FROM_THRESHOLD, INTERRUPTED, StudySearch
from bench.studies.sweep import sweep

SPACE = "search_spaces/demo_grun.yaml"
"""Its first study is asked: eight parameters, four rows a trial."""
SEED = 0
NODES_OF_SOAK = 4
Cells = Sequence[object]
"""A line of a table."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for measure, headings in TABLES.items():
        one = commands.add_parser(measure.__name__, help=measure.__doc__)
        one.add_argument("counts", nargs="+", type=int)
        one.add_argument("--seconds", type=float, default=0.0, help="a no-op's")
        one.add_argument("--at-once", type=int, help="trials, where the machine has no memory for one a node")
        one.add_argument("--results", type=Path, help="the folder to leave the results in")
        one.set_defaults(measure=measure, headings=headings)
    options = parser.parse_args(argv)
    if options.headings:
        print(f"| {' | '.join(options.headings)} |\n|{'--:|' * len(options.headings)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="grun-bench-scaling-") as scratch:
        options.results = options.results or Path(scratch)
        for count in options.counts:
            for cells in options.measure(count, options):
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


def nodes(number: int, options: argparse.Namespace) -> Iterator[Cells]:
    """A sweep on each of these numbers of nodes, one trial at a time on each."""
    at_once = options.at_once or number
    folder, num_trials = options.results / str(number), max(60, 20 * at_once)
    with cluster(number) as address:
        driver = start_driver(folder, num_trials, at_once, options.seconds, address)
        samples = list(watched(driver, folder))
    first = next(sample for sample in samples if sample.done >= at_once + 10)  # every worker is up
    last = next(sample for sample in samples if sample.done >= num_trials - at_once)
    done = last.done - first.done
    rate = done / (last.seconds - first.seconds)
    rows_a_trial = store.scan_runs(folder).filter(adapter="grun").height / num_trials
    yield (
        *(number, at_once, num_trials, f"{rate:.2f}"),
        f"{rate * options.seconds / at_once:.0%}" if options.seconds else "",
        f"{rate * rows_a_trial:.1f}",
        f"{sum(last.megabytes['driver']):.0f}",
        *(f"{1e3 * (last.cpu_s[who] - first.cpu_s[who]) / done:.0f}" for who in ("driver", "workers", "Ray")),
    )


def ask(num_trials: int, options: argparse.Namespace) -> Iterator[Cells]:
    """One study up to so many trainings, without Ray: what Optuna takes for each."""
    study, folder = _study(num_trials), options.results
    store.create(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    opened = partial(StudySearch, [study], folder, lambda line: None)
    search, last = opened(), deque[tuple[float, float]](maxlen=20)
    for number in range(1, num_trials + 1):
        asked_s, spec = timed(partial(search.suggest, str(number)))
        rows = no_op_rows(run_config(json.loads(spec["run_json"])), study.gate_thresholds, study.study)
        told_s, _ = timed(partial(search.on_trial_complete, str(number), {"rows": rows}))
        last.append((asked_s, told_s))
        if number in (10, 30, 100, 300, 1000, 3000, num_trials):
            memory = psutil.Process().memory_info().rss
            opened_s, _ = timed(opened)
            num_known = len(optuna.load_study(study_name=study.study, storage=study_storage(folder)).trials)
            yield (
                *(number, num_known),
                *(f"{1e3 * statistics.median(seconds):.0f}" for seconds in zip(*last, strict=True)),
                f"{opened_s:.2f}",
                f"{(folder / 'studies.journal').stat().st_size / MB:.1f}",
                f"{memory / MB:.0f}",
            )


def rows(num_runs: int, options: argparse.Namespace) -> Iterator[Cells]:
    """So many runs from one writer: written with and without items, read before and after compacting."""
    study, with_items, alone = _study(1), options.results / "with-items", options.results / "alone"
    base = study.run({})
    no_op_references(base, Execution(results=with_items))  # makes the items
    store.create(alone)
    configs = [replace(base, seed=seed) for seed in range(num_runs)]
    written = [no_op_rows(config, (), study.study)[0] for config in configs]

    def write_with_items() -> None:
        for config in configs[: num_runs // 20]:
            no_op(config, Execution(results=with_items))

    def write() -> None:
        for row in written:
            store.write_run(alone, row)

    for name, number, folder, call in (
        ("write, with 440 items each", num_runs // 20, with_items, write_with_items),
        ("write", num_runs, alone, write),
        ("read all", num_runs, alone, partial(store.scan_runs, alone)),
        ("compact", num_runs, alone, partial(store.compact, alone)),
        ("read all, compacted", num_runs, alone, partial(store.scan_runs, alone)),
        ("find one, compacted", 1, alone, partial(store.read_run, alone, configs[-1].run_key)),
    ):
        seconds, _ = timed(call)
        size = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
        yield name, number, f"{seconds:.2f}", f"{number / seconds:.0f}", f"{size / MB:.0f}"


def soak(num_trials: int, options: argparse.Namespace) -> Iterator[Cells]:
    """One sweep of so many trials: kill -9 of a worker every 20 trials or so, of the driver four times."""
    folder, draw = options.results, random.Random(SEED)
    workers_killed = drivers_killed = 0
    marks = [number for number in (100, 300, 500, num_trials) if number <= num_trials]
    with cluster(NODES_OF_SOAK) as address:
        started, next_kill = time.perf_counter(), draw.randint(10, 30)
        while True:
            driver = start_driver(folder, num_trials, NODES_OF_SOAK, options.seconds, address)
            for sample in watched(driver, folder):
                if marks and sample.done >= marks[0]:
                    yield (
                        *(marks.pop(0), f"{time.perf_counter() - started:.0f}"),
                        f"{sum(sample.megabytes['driver']):.0f}",
                        f"{max(sample.megabytes['workers'], default=0.0):.0f}",
                        *(len(sample.workers), workers_killed, drivers_killed),
                    )
                if sample.done > (drivers_killed + 1) * num_trials / 5 and drivers_killed < 4:
                    driver.kill()
                    drivers_killed += 1
                elif sample.done > next_kill and sample.workers:
                    next_kill = sample.done + draw.randint(10, 30)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        draw.choice(sample.workers).kill()
                        workers_killed += 1
            if driver.wait() != -signal.SIGKILL:
                break
    found = store.scan_runs(folder).filter(adapter="grun")
    trials = optuna.load_study(study_name=_study(1).study, storage=study_storage(folder)).trials
    own = [each for each in trials if FROM_THRESHOLD not in each.user_attrs]
    finished = [each for each in own if INTERRUPTED not in each.user_attrs]
    by_state = {state.name: sum(each.state == state for each in finished) for state in TrialState}
    print(
        f"\n{found.height} rows under {found['run_key'].n_unique()} keys from {found['train_key'].n_unique()} "
        f"trainings, status {dict(found['status'].value_counts().iter_rows())}; Optuna: {by_state}, "
        f"and {len(own) - len(finished)} cut off and tried again"
    )


def no_op_sweep(num_trials: int, options: argparse.Namespace) -> Iterable[Cells]:
    """What `nodes` and `soak` start as the driver."""
    study, execution = _study(num_trials), Execution(results=options.results)
    no_op_references(study.run({}), execution)
    log = partial(print, flush=True)
    sweep([study], execution, Pool(num_concurrent=options.at_once), log, partial(no_op, seconds=options.seconds))
    return ()


def _study(num_trials: int) -> SweepConfig:
    return replace(read_studies(SPACE, {}, num_trials)[0], initial_points=())


_CPU = tuple(f"{who}, CPU ms a trial" for who in ("driver", "workers", "Ray"))
TABLES: Mapping[Callable[[int, Any], Iterable[Cells]], Sequence[str]] = {
    nodes: ("nodes", "at once", "trials", "trials/s", "of ideal", "rows/s", "driver, MB", *_CPU),
    ask: ("trainings", "Optuna trials", "suggest, ms", "complete, ms", "open again, s", "journal, MB", "process, MB"),
    rows: ("what", "runs", "seconds", "runs/s", "folder, MB"),
    soak: ("trials", "seconds", "driver, MB", "largest worker, MB", "workers", "workers killed", "drivers killed"),
    no_op_sweep: (),
}
"""Each measurement, called with one of the counts and the options, and the headings of its lines."""


if __name__ == "__main__":
    main()
