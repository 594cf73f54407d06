"""A module a request, each trained against the frozen base model: their order does not matter, and they stack.

What was measured of one state serves the next.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from bench.evaluation.reuse import Applied, evaluate_combined
from bench.results.columns import ItemRow
from bench.runs.training import forget_set_of, plan_of, train
from bench.sequential.scores import PREFILL_PROMPTS, prefill_seconds
from bench.sequential.states import States
from grun.data import Example
from grun.engine.edited import EditedModel
from grun.gates.openings import choose_threshold
from grun.model.forward import Adapted
from grun.sequential import combine
from grun.training.plan import hold_back


def train_modules(states: States, places: Sequence[int]) -> None:
    """Those of the requests at some places in their order that are not there yet; all share one prefix cache."""
    missing = [place for place in places if not states.is_trained(states.module(states.requests[place]))]
    if not missing:
        return
    subject, config = states.subject, states.sequence.config
    base = _edited(subject.attached())
    base.announce(_all_examples(states), generate=False, progress=lambda done, total: None)
    for place in missing:
        request = states.requests[place]
        own = replace(config, seed=config.seed + request.seed_offset)
        planned = plan_of(own, subject, replace(subject.benchmark, forget_set=request.items))
        fresh = _edited(own.adapter.attach(subject.model, own.seed))
        adapted = base.with_edits({int(layer): edit for layer, edit in fresh.edits.items()})
        train(own, subject, adapted, planned, states.module(request))


def _all_examples(states: States) -> list[Example]:
    """What any request's training asks the frozen model of: its items, as they are and as the losses make them."""
    subject, targets = states.subject, states.sequence.config.forget_loss.targets
    examples = [item.example(subject.template) for request in states.requests for item in request.items]
    for request in states.requests:  # each a forget set of its own
        forget = forget_set_of(subject, replace(subject.benchmark, forget_set=request.items))
        for items in forget.examples(targets).values():
            examples += [example for own in items for example in own]
    return examples


def run_stack(states: States) -> None:
    """Write the states of stacked modules, all of them trained, that are not there yet."""
    variants, requests = states.sequence.variants, states.requests
    todo = [(variant, size) for variant in variants for size in states.missing(variant)]
    if not todo:
        return
    subject = states.subject
    base = _edited(subject.attached())
    modules = {
        request.name: _edited(subject.loaded(states.module(request)))
        for request in requests[: max(size for _, size in todo)]
    }
    target_items = states.items_of("target_model") or ()
    base_rows = {(row["split"], row["item_index"], Applied()): row for row in target_items}
    known: dict[tuple[str, int], dict[tuple[str, int, Applied], ItemRow]] = {}
    for variant, size in todo:
        assert variant.combination is not None
        started = time.perf_counter()
        present = {request.name: modules[request.name] for request in requests[:size]}
        adapted = combine(base, present, variant.combination, variant.gate_threshold or 0.0)
        threshold, share = variant.gate_threshold, None
        if threshold is None:
            threshold, share = _chosen_threshold(states, adapted)
        # Where the number of modules says how much an edit weighs, rows of another number are no rows of this state.
        same = variant.combination, size if variant.combination == "scaled_by_number" else 0
        asking = states.asking(adapted)
        rows = evaluate_combined(asking, subject.benchmark.evaluation, known.setdefault(same, dict(base_rows)))
        rows += states.attacks(asking, size)
        cost = {
            "gate_threshold": threshold,
            "false_openings": share,
            **subject.in_no_set(adapted, [threshold])[0],
            "train_seconds": states.train_seconds(states.module(requests[size - 1])),
            "eval_seconds": time.perf_counter() - started,
            "added_parameters": size * sum(p.numel() for p in base.trainable_parameters()),
        }
        if size == len(requests):
            asked = [item for request in requests for item in request.items][:PREFILL_PROMPTS]
            prompts = [item.example(subject.template).prompt_ids for item in asked]
            unasked = combine(_edited(subject.attached()), present, variant.combination, threshold or 0.0)
            cost["prefill_seconds"], cost["bare_prefill_seconds"] = prefill_seconds(unasked, prompts)
        states.write(variant, size, rows, cost)


def _chosen_threshold(states: States, adapted: EditedModel) -> tuple[float, float]:
    """Of all modules together, by the prompts that none of them was trained on: the threshold, and what it comes to."""
    subject, adapter = states.subject, states.sequence.config.adapter
    assert adapter.is_gated
    assert adapter.max_false_openings is not None
    retain = [item.example(subject.template) for item in subject.benchmark.retain_set]
    held_back = [*hold_back(retain)[1], *hold_back(subject.keep)[1]]
    return choose_threshold(adapted, held_back, adapter.max_false_openings)


def _edited(adapted: Adapted) -> EditedModel:
    """What a stackable adapter gives."""
    assert isinstance(adapted, EditedModel)
    return adapted
