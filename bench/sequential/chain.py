"""One set of weights that every request changes: request k goes on from what request k − 1 left."""

import time
from dataclasses import replace

from bench.evaluation.evaluate import evaluate
from bench.runs.training import plan_of, train
from bench.sequential.states import States


def run_chain(states: States) -> None:
    """Write the states that are not there yet, going on from the last weights that are."""
    (variant,) = states.sequence.variants
    missing = states.missing(variant)
    if not missing:
        return
    subject, config, requests = states.subject, states.sequence.config, states.requests
    folders = [states.weights(size) for size in range(len(requests) + 1)]
    # Only the last weights are kept: of the last whole state, or of a later one that was not measured yet.
    begun = next((size for size in range(missing[0], 0, -1) if states.is_trained(folders[size])), 0)
    end = missing[-1]
    plans = [
        plan_of(config, subject, replace(subject.benchmark, forget_set=request.items))
        for request in requests[begun:end]  # before an adapter is on: the reference model is the target model
    ]
    adapted = subject.loaded(folders[begun]) if begun else subject.attached()
    for size in range(max(begun, 1), end + 1):
        if size > begun:
            train(config, subject, adapted, plans[size - begun - 1], folders[size])
            folders[size - 1].remove()
        if size not in missing:
            continue
        started = time.perf_counter()
        adapted.train(False)
        asking = states.asking(adapted)
        rows = evaluate(asking, subject.benchmark.evaluation) + states.attacks(asking, size)
        cost = {
            "gate_threshold": None,
            "train_seconds": states.train_seconds(folders[size]),
            "eval_seconds": time.perf_counter() - started,
            "added_parameters": sum(p.numel() for p in adapted.trainable_parameters()),
        }
        states.write(variant, size, rows, cost)
