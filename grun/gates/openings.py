"""A gate threshold by what it lets through: how many prompts that are to be kept may open a gate."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from grun.adapters import AdapterConfig
from grun.adapters.grun import set_gate_threshold
from grun.data import Example, length_sorted_batches
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted
from pyvene_custom.edits import Gated
from pyvene_custom.gate_functions import HIDDEN_WIDTHS

BATCH = 64
HALF_OPEN = 0.5
"""At gate threshold 0 no gate is ever quite shut: from here on it is called open."""


def check_gates(config: AdapterConfig) -> None:
    """Raises UserError where settings of gates do not go together."""
    if not config.is_gated:
        return
    if config.gate_threshold != type(config)().gate_threshold:
        check_thresholds(config, [config.gate_threshold])
    if config.keep_prompts and config.gate_function in HIDDEN_WIDTHS:
        problem = f"a {config.gate_function} gate is fitted to no prompts; use gate_function router, or leave them out"
        raise UserError("adapter.keep_prompts", problem)


def check_thresholds(config: AdapterConfig, gate_thresholds: Sequence[float]) -> None:
    """Raises UserError where gate thresholds are given, and one is to be chosen."""
    if gate_thresholds and config.is_gated and config.max_false_openings is not None:
        raise UserError("adapter.max_false_openings", "chooses the gate threshold; leave that out, or this")


def at_chosen_threshold(
    config: AdapterConfig, adapted: Adapted, held_back: Sequence[Example]
) -> tuple[AdapterConfig, dict[str, float]]:
    """The config and what it trained at the threshold that its `max_false_openings` asks for, where it has one.

    held_back: see `choose_threshold`. Returns what was chosen too, as columns of a run.
    """
    if not config.is_gated or config.max_false_openings is None:
        return config, {}
    threshold, share = choose_threshold(cast(EditedModel, adapted), held_back, config.max_false_openings)
    return replace(config, gate_threshold=threshold), {"gate_threshold": threshold, "false_openings": share}


def choose_threshold(
    adapted: EditedModel, held_back: Sequence[Example], max_false_openings: float
) -> tuple[float, float]:
    """Set the least threshold of all gates at which no larger a share of prompts opens any of them.

    held_back: kept items, at least one, that nothing was trained on. Returns the threshold and the share it comes to. A
    gate that reads what others may have edited counts as it is while they are shut: the first to open finds it so.
    """
    most_open = _most_open(adapted, [example.prompt_ids for example in held_back])
    shut = sorted(most_open, reverse=True)[int(max_false_openings * len(most_open))]
    threshold = torch.nextafter(torch.tensor(shut), torch.tensor(math.inf)).item()  # as the gates compare
    set_gate_threshold(adapted, threshold)
    return threshold, sum(value > shut for value in most_open) / len(most_open)


def gates_of(adapted: EditedModel, prompts: Sequence[tuple[int, ...]], batch_size: int) -> Tensor:
    """How open every gate is to some prompts as the model now is: [prompts, gates], in their order."""
    found: dict[int, Tensor] = {}
    for rows in length_sorted_batches([len(prompt) for prompt in prompts], batch_size):
        logit_BK = adapted.prompt_gates([prompts[row] for row in rows])
        assert logit_BK is not None, "these edits have gates"
        found |= dict(zip(rows, torch.sigmoid(logit_BK), strict=True))
    return torch.stack([found[row] for row in range(len(prompts))])


def open_shares(
    adapted: EditedModel, prompts: Sequence[tuple[int, ...]], gate_thresholds: Sequence[float]
) -> list[float]:
    """Share of prompts that would open any gate, at each threshold; at 0, where none is quite shut, half of it."""
    most_open, limits = _most_open(adapted, prompts), [threshold or HALF_OPEN for threshold in gate_thresholds]
    return [sum(value >= limit for value in most_open) / len(prompts) for limit in limits]


def _most_open(adapted: EditedModel, prompts: Sequence[tuple[int, ...]]) -> list[float]:
    """The largest gate of each prompt while all are shut: at a threshold one is open if it is."""
    edits = [cast(Gated, edit) for edit in adapted.edits.values()]
    before = [edit.gate_threshold for edit in edits]
    set_gate_threshold(adapted, math.inf)
    most_open: list[float] = gates_of(adapted, prompts, BATCH).amax(dim=1).tolist()
    for edit, gate_threshold in zip(edits, before, strict=True):
        edit.gate_threshold = gate_threshold
    return most_open
