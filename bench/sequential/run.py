"""The request loop: deletion requests one after another, and after each of them every request measured again."""

import time
from collections.abc import Sequence

from bench.progress import Progress, quiet
from bench.runs.execution import Execution
from bench.runs.run import run_prerequisites
from bench.sequential import stack
from bench.sequential.chain import run_chain
from bench.sequential.request import RequestSequence
from bench.sequential.states import Say, States


def run_sequence(sequence: RequestSequence, execution: Execution, say: Say, progress: Progress = quiet) -> None:
    """Meet every request, and write the rows of every state; goes on after the last state that is there.

    say: gets one line for each state. Raises UserError where a training diverges.
    """
    states = States(sequence, execution, say, progress)
    execution.check(sequence.config)
    run_prerequisites(sequence.config, execution)
    if sequence.config.adapter.is_stackable:
        stack.train_modules(states, range(max(sequence.only_after, default=len(states.requests))))
        stack.run_stack(states)
    else:
        run_chain(states)


def train_modules(
    sequence: RequestSequence, execution: Execution, say: Say, progress: Progress = quiet, *, places: Sequence[int]
) -> None:
    """Train the modules of some requests, each against the frozen base model; those that are there are kept.

    places: of the requests in their order.
    """
    started = time.perf_counter()
    stack.train_modules(States(sequence, execution, say, progress), places)
    say(f"{sequence.study}: modules of {len(places)} requests are there, {time.perf_counter() - started:.0f} s")
