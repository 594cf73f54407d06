"""A threshold by a share of false openings: which one, of which prompts, and where it is not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.runs.related import at_thresholds
from bench.spaces.search_space import read_studies
from grun.adapters.grun import GrunConfig
from grun.data import Example
from grun.errors import UserError
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.gates.openings import choose_threshold, open_shares
from grun.retain_losses.ce import CeConfig
from grun.testing.small import FORGET, RETAIN, SmallModels
from grun.training.plan import hold_back, plan_steps
from grun.training.recipe import Recipe, TrainingConfig

RATE = "adapter.max_false_openings"


class Gates:
    """In place of an adapted model: what its gates say of each prompt, by the prompt's only token."""

    def __init__(self, gate_XK: list[list[float]]) -> None:
        self.gate_XK = torch.tensor(gate_XK)
        self.edits = {str(k): SimpleNamespace(gate_threshold=0.5) for k in range(self.gate_XK.shape[1])}

    def prompt_gates(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.logit(self.gate_XK[[prompt[0] for prompt in prompts]])


def _chosen(gate_XK: list[list[float]], rate: float) -> tuple[float, float, list[float]]:
    gates = Gates(gate_XK)
    held_back = [Example(prompt_ids=(x,), answer_ids=(0,)) for x in range(len(gate_XK))]
    threshold, share = choose_threshold(cast(Any, gates), held_back, rate)
    return threshold, share, [edit.gate_threshold for edit in gates.edits.values()]


@pytest.mark.parametrize(
    ("rate", "below", "above", "share"),
    [(0.0, 0.875, 1.0, 0.0), (0.25, 0.625, 0.75, 0.25), (0.49, 0.625, 0.75, 0.25), (0.5, 0.25, 0.625, 0.5)],
)
def test_the_least_threshold_by_hand(rate: float, below: float, above: float, share: float) -> None:
    """Of gates at 7/8, 5/8, 1/4 and 1/8 a rate of 0.25 lets the first one through: any τ above 5/8 does, and the least
    float above it is taken; of 0.49 too, since two would be half. (7/8 itself is in the way of a rate of 0.)"""
    threshold, reached, everywhere = _chosen([[0.125], [0.875], [0.25], [0.625]], rate)
    assert below < threshold < above
    assert threshold == pytest.approx(below, abs=1e-6)
    assert reached == share
    assert everywhere == [threshold]


def test_the_share_at_a_threshold_by_hand() -> None:
    """Largest of two gates each: 3/4, 7/8, 1/2, 1/4; at 0.6 and above: two of four. What is in force stays so."""
    gates = Gates([[0.75, 0.125], [0.25, 0.875], [0.5, 0.5], [0.25, 0.125]])
    assert open_shares(cast(Any, gates), [(0,), (1,), (2,), (3,)], [0.6]) == [0.5]
    assert [edit.gate_threshold for edit in gates.edits.values()] == [0.5, 0.5]


def test_prompts_that_are_alike_open_together_or_not_at_all() -> None:
    """Three of four at 7/8: half may open, and three would; so none does."""
    threshold, reached, _ = _chosen([[0.875], [0.875], [0.125], [0.875]], 0.5)
    assert threshold > 0.875
    assert reached == 0.0


def test_a_prompt_opens_falsely_where_any_gate_does() -> None:
    """Largest of each prompt's two: 3/4, 7/8, 1/2, 1/4. One of four may open: τ is just above 3/4, of both gates."""
    threshold, reached, everywhere = _chosen([[0.75, 0.125], [0.25, 0.875], [0.5, 0.5], [0.25, 0.125]], 0.25)
    assert threshold == pytest.approx(0.75, abs=1e-6)
    assert reached == 0.25
    assert everywhere == [threshold] * 2


def test_the_share_is_that_of_the_model_at_work(tmp_path: Path) -> None:
    """GRUN's second gate reads what the first one's edit made of it where that is open. At the threshold, as many
    prompts open a gate as was said, whatever the edits do."""
    model, template = SmallModels.made_in(tmp_path).fresh()
    adapted = GrunConfig(layers=(0, 1, 2)).attach(model, 0)
    with torch.no_grad():
        for edit in cast(Any, adapted.edits.values()):
            edit.learned_source.bias.add_(5.0)
    adapted.train(False)
    examples = [item.example(template) for item in (*FORGET, *RETAIN)]
    soft = torch.sigmoid(cast(Tensor, adapted.prompt_gates([example.prompt_ids for example in examples])))
    threshold, share = choose_threshold(adapted, examples, 0.34)
    gates_BK = torch.sigmoid(cast(Tensor, adapted.prompt_gates([example.prompt_ids for example in examples])))
    assert (gates_BK >= threshold).any(dim=1).float().mean().item() == pytest.approx(share)
    assert share == pytest.approx(4 / 12)
    assert not torch.allclose(soft, gates_BK), "with all open, the upper gates would have said something else"


def test_the_last_fifth_is_held_back() -> None:
    """Of twelve two, of five one; of four none is left to be held back."""
    examples = [Example(prompt_ids=(x,), answer_ids=(0,)) for x in range(12)]
    assert hold_back(examples) == (examples[:10], examples[10:])
    assert hold_back([]) == ([], [])
    assert hold_back(examples[:5]) == (examples[:4], examples[4:5])
    with pytest.raises(UserError, match=r"^adapter\.max_false_openings: needs 5 kept items or more, and there are 4$"):
        hold_back(examples[:4])


@pytest.mark.parametrize("rate", [None, 0.01])
def test_nothing_is_trained_on_what_is_held_back(rate: float | None) -> None:
    """Neither in a step nor for a gate in closed form, fitted to `retain`; without a rate all of it is used."""
    forget, retain = ([Example(prompt_ids=(x,), answer_ids=(0,)) for x in range(n, n + 10)] for n in (0, 100))
    recipe = Recipe(
        forget_loss=GradAscentConfig(),
        retain_loss=CeConfig(),
        training=TrainingConfig(num_epochs=5, batch_size=5),
        learning_rate=0.1,
        max_false_openings=rate,
    )
    plan = plan_steps(recipe, {"answer": [[example] for example in forget]}, retain)
    used = {example for parts in plan.steps for part in parts for example in part.examples.retain}
    expected = retain if rate is None else retain[:8]
    assert used == set(expected)
    assert list(plan.retain) == expected
    assert list(plan.held_back) == retain[len(expected) :]


@pytest.mark.parametrize("adapter", ["grun", "gated_lora", "eco"])
def test_it_goes_with_no_threshold(adapter: str, tmp_path: Path) -> None:
    """One line where both are given: in a configuration, behind a command, in a file. Alone it is in the key."""
    plain, rated = (run_config(overlay({"adapter": adapter}, each)) for each in ({}, {RATE: 0.01}))
    assert plain.train_key != rated.train_key
    assert at_thresholds(rated, ()) == [rated]
    line = rf"{RATE}: chooses the gate threshold; leave that out, or this$"
    with pytest.raises(UserError, match=f"^{line}"):
        run_config(overlay({"adapter": adapter}, {RATE: 0.01, "adapter.gate_threshold": 0.3}))
    with pytest.raises(UserError, match=f"^{line}"):
        at_thresholds(rated, (0.3,))
    space = {"adapter.gate_layer": {"type": "categorical", "choices": [0.5, 1.0]}}
    file = {"study": "s", "base": {"adapter": adapter}, "search_space": space, "gate_thresholds": [0.3]}
    write_yaml(tmp_path / "space.yaml", file)
    with pytest.raises(UserError, match=line):
        read_studies(str(tmp_path / "space.yaml"), {RATE: 0.01}, None)
    assert read_studies(str(tmp_path / "space.yaml"), {}, None)


def test_without_gates_there_is_none() -> None:
    with pytest.raises(UserError, match=r"^adapter\.max_false_openings: unknown key"):
        run_config({"adapter": {"name": "lora", "max_false_openings": 0.01}})
    with pytest.raises(UserError, match=r"^adapter\.max_false_openings: must be less than 1"):
        run_config({"adapter": {"max_false_openings": 1.0}})
    assert RunConfig().adapter == GrunConfig(max_false_openings=None)
