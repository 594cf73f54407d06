"""Evaluations that share rows: what an edited model answers depends only on which of its edits are applied."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
from torch import Tensor

from bench.benchmarks.items import Item
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import Question, in_order, measure, own_questions
from bench.results.columns import ItemRow
from grun.adapters.grun import gates_forced
from grun.engine.edited import EditedModel
from grun.gates.openings import gates_of
from grun.sequential import combined_edits

Pattern = tuple[bool, ...]
"""Which gates are open, layer by layer."""
Applied = frozenset[tuple[int, str]]
"""(place of an edited layer, request) of each edit that is applied to a prompt."""
Shown = TypeVar("Shown", bound=Hashable)


def evaluate_thresholds(
    asking: Asking, splits: Mapping[str, Sequence[Item]], gate_thresholds: Sequence[float], base_rows: Sequence[ItemRow]
) -> list[list[ItemRow]]:
    """What `evaluate` gives at each gate threshold, for little more than one evaluation.

    A prompt whose gates are all shut is answered by the base model, whose rows are there already (base_rows, of the
    same splits); each other pattern of gates is evaluated once, for all prompts and thresholds that show it.
    """
    adapted = _edited(asking)
    shut = (False,) * len(adapted.layers)
    return _evaluate(
        asking,
        splits,
        lambda questions: _at_thresholds(asking, questions, gate_thresholds),
        {(row["split"], row["item_index"], shut): row for row in base_rows},
        lambda pattern: gates_forced(adapted, pattern),
    )


def evaluate_combined(
    asking: Asking, splits: Mapping[str, Sequence[Item]], known: dict[tuple[str, int, Applied], ItemRow]
) -> list[ItemRow]:
    """What `evaluate` gives for a model with the modules of several requests on (`grun.sequential.combine`).

    known: (split, item_index, whose edits are applied at which layer) → row, of the same modules under the same
    combination; used where it has a prompt already, and added to. A row under the empty set is the base model's.
    """
    (rows,) = _evaluate(asking, splits, lambda questions: [_applied(asking, questions)], known, None)
    return rows


def _evaluate(
    asking: Asking,
    splits: Mapping[str, Sequence[Item]],
    shown: Callable[[Sequence[Question]], list[list[tuple[Shown, list[float]]]]],
    known: dict[tuple[str, int, Shown], ItemRow],
    forced: Callable[[Shown], AbstractContextManager[None]] | None,
) -> list[list[ItemRow]]:
    """Rows at each of several settings of the gates.

    shown: of some questions, at each setting, for each question: which edits are applied, and all gates.
    known: (split, item_index, that) → row; added to. forced: makes the model apply just these edits, where it does not
    do so by itself.
    """
    curve: list[list[ItemRow]] = []
    for split, items in splits.items():
        questions = own_questions(asking, split, items)
        at_settings = shown(questions)
        missing = {
            (edits, question.index): question
            for found in at_settings
            for question, (edits, _) in zip(questions, found, strict=True)
            if (split, question.index, edits) not in known
        }
        groups: dict[Shown | None, list[tuple[Shown, Question]]] = {}
        for (edits, _), question in missing.items():
            groups.setdefault(edits if forced else None, []).append((edits, question))
        for group in groups.values():
            with forced(group[0][0]) if forced else nullcontext():
                found_rows = measure(asking, split, [question for _, question in group])
            for (edits, question), row in zip(group, found_rows, strict=True):
                known[split, question.index, edits] = row
        curve = curve or [[] for _ in at_settings]
        for rows, found in zip(curve, at_settings, strict=True):
            own = [
                known[split, question.index, edits] | {"gate": gates}
                for question, (edits, gates) in zip(questions, found, strict=True)
            ]
            rows += in_order(asking, own)
    return curve


def _edited(asking: Asking) -> EditedModel:
    assert isinstance(asking.adapted, EditedModel), "only edits have gates"
    return asking.adapted


def _gates(asking: Asking, questions: Sequence[Question]) -> Tensor:
    """Every gate of the questions' prompts as the model now is: [questions, gates]."""
    return gates_of(_edited(asking), [question.prompt_ids for question in questions], asking.config.batch_size)


def _applied(asking: Asking, questions: Sequence[Question]) -> list[tuple[Applied, list[float]]]:
    """Of each question: whose edits are applied, and all gates, layer by layer."""
    if not questions:
        return []
    edits, gates_BK = combined_edits(_edited(asking)), _gates(asking, questions)
    by_layer = gates_BK.split([len(edit.requests) for edit in edits], dim=1)
    is_applied = [(edit.weight(gates) > 0).tolist() for edit, gates in zip(edits, by_layer, strict=True)]
    applied = [
        frozenset(
            (layer, request)
            for layer, edit in enumerate(edits)
            for request, is_on in zip(edit.requests, is_applied[layer][row], strict=True)
            if is_on
        )
        for row in range(len(questions))
    ]
    return list(zip(applied, gates_BK.tolist(), strict=True))


def _at_thresholds(
    asking: Asking, questions: Sequence[Question], gate_thresholds: Sequence[float]
) -> list[list[tuple[Pattern, list[float]]]]:
    """At each threshold for each question: which gates are open, and how open they are, layer by layer.

    A gate only depends on which gates below it are open, so one pass with a whole pattern forced gives the gates of
    every start of it: as many passes as there are starts to be seen, not as there are thresholds.
    """
    adapted = _edited(asking)
    num_gates = len(adapted.layers)
    thresholds = np.asarray(gate_thresholds, dtype=np.float32).tolist()  # as the gates themselves compare
    known: list[dict[Pattern, float]] = [{} for _ in questions]
    """For each question: the open and shut gates below → the next gate."""

    def pattern_of(gates: Mapping[Pattern, float], gate_threshold: float) -> Pattern:
        """As far up as it is known."""
        pattern: Pattern = ()
        while len(pattern) < num_gates and pattern in gates:
            pattern += (gates[pattern] >= gate_threshold,)
        return pattern

    while True:
        unknown: dict[Pattern, set[int]] = {}
        for at, gates in enumerate(known):
            for pattern in {pattern_of(gates, gate_threshold) for gate_threshold in thresholds}:
                if len(pattern) < num_gates:
                    unknown.setdefault(pattern, set()).add(at)
        if not unknown:
            break
        for start, places in unknown.items():
            forced, ordered = start + (True,) * (num_gates - len(start)), sorted(places)
            with gates_forced(adapted, forced):
                found = _gates(asking, [questions[at] for at in ordered]).tolist()
            for at, values in zip(ordered, found, strict=True):
                known[at] |= {forced[:k]: values[k] for k in range(len(start), num_gates)}
    patterns = [[pattern_of(gates, gate_threshold) for gates in known] for gate_threshold in thresholds]
    return [
        [(pattern, [gates[pattern[:k]] for k in range(num_gates)]) for pattern, gates in zip(own, known, strict=True)]
        for own in patterns
    ]
