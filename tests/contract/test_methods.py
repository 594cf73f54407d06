"""What every method must keep: any adapter with any forget loss and any retain loss goes through the one loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.config import RunConfig, overlay, run_config
from bench.runs import subject
from bench.runs.execution import Execution
from bench.runs.subject import Subject
from bench.runs.training import plan_of
from grun.adapters import AdapterConfig
from grun.errors import UserError
from grun.forget_losses import ForgetLossConfig
from grun.retain_losses import RetainLossConfig
from grun.targets import alternate, refusal
from grun.targets.target import ForgetSet, Texts
from grun.training.unlearn import Step, unlearn

ADAPTERS = [kind.name for kind in get_args(AdapterConfig) if kind.trains and kind.has_loss]
FORGET_LOSSES = [kind.name for kind in get_args(ForgetLossConfig)]
RETAIN_LOSSES = [kind.name for kind in get_args(RetainLossConfig)]
FEW_STEPS = {"training.batch_size": 5, "training.num_epochs": 3}
"""Two batches of the ten forget items an epoch: six steps."""
WEIGHTED = ("wga", "satimp", "ce_u")
"""Losses whose weights or targets are held constant in a step: their values need not fall from step to step."""
Train = Callable[..., list[Step]]


@pytest.fixture
def train(
    small_config: RunConfig, tmp_path: Path, load_copy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Train:
    """Trains a model that knows the forget set; returns what each step did."""
    monkeypatch.setattr(subject, "load_pretrained", load_copy)

    def run(changes: dict[str, Any], accumulation_steps: int = 1, num_items: int = 10) -> list[Step]:
        config = run_config(overlay(small_config.to_dict(), FEW_STEPS | changes))
        execution = Execution(results=tmp_path, engine="plain", accumulation_steps=accumulation_steps)
        opened = Subject(config=config, execution=execution)
        whole = opened.benchmark
        few = replace(whole, forget_set=whole.forget_set[:num_items], retain_set=whole.retain_set[: 4 * num_items])
        plan, reference = plan_of(config, opened, few)
        steps: list[Step] = []
        unlearn(opened.attached(), plan, config.recipe, reference, report=steps.append)
        return steps

    return run


@pytest.mark.parametrize("retain_loss", RETAIN_LOSSES)
@pytest.mark.parametrize("forget_loss", FORGET_LOSSES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_pair_trains(adapter: str, forget_loss: str, retain_loss: str, train: Train) -> None:
    """Four items a step: its forget loss falls from an epoch to the next with the same texts; what means nothing is
    refused."""
    num_epochs = 1 + (alternate.PER_ITEM if forget_loss == "altpo" else refusal.PER_ITEM)
    changes = {
        "adapter": adapter,
        "adapter.learning_rate": 1e-3,
        "forget_loss": forget_loss,
        "retain_loss": retain_loss,
        "training.batch_size": 4,
        "training.num_epochs": num_epochs,
    }
    if retain_loss == "rmu_mse" and forget_loss != "rmu":
        with pytest.raises(UserError, match="retain_loss: rmu_mse keeps the layer"):
            train(changes, num_items=4)
        return
    steps = train(changes, num_items=4)
    assert len(steps) == num_epochs
    assert all(math.isfinite(step.loss) for step in steps)
    assert steps[-1].forget_loss < steps[0].forget_loss or forget_loss in WEIGHTED


@pytest.mark.parametrize("forget_loss", FORGET_LOSSES)
def test_a_step_in_parts_is_a_step(forget_loss: str, train: Train) -> None:
    """Five items a step in passes of two, two and one: every loss of every step to 1e-4."""
    changes = {"forget_loss": forget_loss, "retain_loss": "kl"}
    for one, other in zip(train(changes), train(changes, accumulation_steps=3), strict=True):
        for field in ("loss", "forget_loss", "retain_loss", "gate_loss"):
            assert getattr(other, field) == pytest.approx(getattr(one, field), rel=1e-4, abs=1e-5)


class _Logits(TorchDispatchMode):
    """Notes what makes a tensor of as many numbers as all logits, [N, V]."""

    def __init__(self, num_tokens: int, vocab_size: int) -> None:
        super().__init__()
        self.shape, self.made_by = (num_tokens, vocab_size), list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-2:] == self.shape:
            given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
            if result.untyped_storage().data_ptr() not in given:  # no view, and not changed in place
                self.made_by.append(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("adapter", ["grun", "lora", "full"])
def test_a_step_copies_no_logits(
    adapter: str,
    small_config: RunConfig,
    tmp_path: Path,
    load_copy: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head's product, and its gradient, put together of the two losses': nothing else is as large."""
    monkeypatch.setattr(subject, "load_pretrained", load_copy)
    changes = {"adapter": adapter, "forget_loss": "npo", "training.batch_size": 5, "training.num_epochs": 1}
    config = run_config(overlay(small_config.to_dict(), changes))
    opened = Subject(config=config, execution=Execution(results=tmp_path))
    few = replace(opened.benchmark, forget_set=opened.benchmark.forget_set[:5])
    plan, reference = plan_of(config, opened, few)
    adapted = opened.attached()
    unlearn(adapted, plan, config.recipe, reference)  # the prefix cache is built by now
    ((part,),) = plan.steps
    num_tokens = sum(len(example.answer_ids) for example in part.examples.all)
    logits = _Logits(num_tokens, opened.model.config.vocab_size)
    with logits:
        unlearn(adapted, plan, config.recipe, reference)
    assert sorted(logits.made_by) == ["cat", "mm"]


@pytest.mark.parametrize("gate_function", ["linear", "mlp_3", "mlp_5"])
@pytest.mark.parametrize("gate_weight", [0.0, 10.0])
@pytest.mark.parametrize("gate_warmup_steps", [0, 4])
def test_what_a_step_minimises(gate_function: str, gate_weight: float, gate_warmup_steps: int, train: Train) -> None:
    """warm-up · (forget_weight · forget + retain_weight · retain) + gate_weight · gate, the gate term never scaled."""
    changes = {
        "adapter.gate_function": gate_function,
        "adapter.gate_weight": gate_weight,
        "adapter.gate_warmup_steps": gate_warmup_steps,
        "training.forget_weight": 0.5,
        "training.retain_weight": 3.0,
    }
    for step in train(changes):
        warm = min(1.0, step.step / gate_warmup_steps) if gate_warmup_steps else 1.0
        expected = warm * (0.5 * step.forget_loss + 3.0 * step.retain_loss) + gate_weight * step.gate_loss
        assert step.loss == pytest.approx(expected, rel=1e-5)


def test_a_constraint_weighs_more_while_it_is_not_met(train: Train) -> None:
    """Step t is forget + λ_t · retain, λ_1 = retain_weight and λ_t+1 = max(0, λ_t + η (retain_t − ε)), here ε = 0."""
    changes = {"adapter": "reft", "forget_loss": "pdu", "training.retain_weight": 1.0, "retain_loss.max_loss": 0.0}
    weight = 1.0
    for step in train({**changes, "retain_loss": "pdu", "retain_loss.dual_rate": 0.5}):
        assert step.loss == pytest.approx(step.forget_loss + weight * step.retain_loss, rel=1e-5)
        weight = max(0.0, weight + 0.5 * step.retain_loss)
    assert weight > 1.0


@pytest.mark.parametrize(("weight", "learn"), [(1.0, True), (0.0, False)])
def test_without_a_gate_loss_the_gates_still_learn(weight: float, learn: bool, small_config: RunConfig) -> None:
    """They get their gradient from the forget and retain losses, and where those weigh nothing, none at all."""
    weights = {"adapter.gate_weight": 0.0, "training.forget_weight": weight, "training.retain_weight": weight}
    config = run_config(overlay(small_config.to_dict(), FEW_STEPS | weights))
    opened = Subject(config=config, execution=Execution(results="unused", engine="plain"))
    plan, reference = plan_of(config, opened, opened.benchmark)
    adapted: Any = opened.attached()
    gates = [p for name, p in adapted.edits.named_parameters() if "gate" in name]
    before = [gate.detach().clone() for gate in gates]
    unlearn(adapted, plan, config.recipe, reference)
    assert gates
    assert all(torch.equal(gate, then) != learn for gate, then in zip(gates, before, strict=True))


def test_a_lost_model_is_given_up(train: Train) -> None:
    """An epoch whose mean retain loss is over the limit is the last one; below it nothing changes."""
    changes = {
        "adapter": "full",
        "adapter.learning_rate": 0.05,
        "training.num_epochs": 6,
        "training.retain_weight": 0.0,
    }
    whole = train(changes)
    assert len(whole) == 12
    epochs = [(whole[at].retain_loss + whole[at + 1].retain_loss) / 2 for at in range(0, 12, 2)]
    limit = (epochs[1] + epochs[2]) / 2
    assert epochs[1] < limit < epochs[2], "what weighs nothing gets worse and worse"
    assert train({**changes, "training.max_retain_loss": limit}) == whole[:6]


def test_seeds_differ_and_repeat(train: Train) -> None:
    """Another seed draws other batches and initial values; the same seed gives the same losses to the last bit."""
    one, again, other = ([step.loss for step in train({"seed": seed})] for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_what_the_model_made_up_is_kept(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on, or another trial of the same model, finds it; another forget set gets its own."""
    made: list[int] = []

    def make(forget: ForgetSet) -> Texts:
        made.append(len(forget.items))
        return [[f"made up {len(made)}"] for _ in forget.items]

    monkeypatch.setattr(alternate, "_made_up", make)
    for changes in ({}, {"seed": 1, "forget_loss.beta": 0.5}):
        config = run_config(overlay(small_config.to_dict(), {"forget_loss": "altpo", **changes}))
        opened = Subject(config=config, execution=Execution(results=tmp_path, engine="plain"))
        plan, _ = plan_of(config, opened, opened.benchmark)
        texts = [opened.template.text(example.answer_ids) for example in plan.forget]
        assert texts[10:] == ["made up 1"] * 10
    assert made == [10]
    plan_of(config, opened, replace(opened.benchmark, forget_set=opened.benchmark.forget_set[:4]))
    assert made == [10, 4]
