"""What every method must keep: any adapter with any forget loss and any retain loss goes through the one loop."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from bench.benchmarks.authors import AuthorsConfig
from bench.config import RunConfig, overlay, run_config
from bench.models import TinyConfig, new_tiny_model
from bench.train import plan_of
from grun.adapters import AdapterConfig
from grun.adapters.grun import GrunConfig
from grun.data import PromptTemplate
from grun.errors import UserError
from grun.forget_losses import ForgetLossConfig
from grun.forward import prepare_for_answers
from grun.unlearn import RETAIN_NEEDS, Step, unlearn

ADAPTERS = [kind.name for kind in get_args(AdapterConfig) if kind.name != "none"]
FORGET_LOSSES = [kind.name for kind in get_args(ForgetLossConfig)]
BENCHMARK = AuthorsConfig(num_authors=5).load()
SMALL = overlay({}, {"training.batch_size": 5, "training.num_epochs": 4, "benchmark.num_authors": 5})
WEIGHTED = ("wga", "satimp", "ce_u")
"""Losses whose weights or targets are held constant in a step: their values need not fall from step to step."""


def _fresh() -> tuple[Any, PromptTemplate]:
    """A model that has learned nothing: enough to see which way a loss pushes."""
    pairs = [item.pair for item in [*BENCHMARK.forget_set, *BENCHMARK.retain_set]]
    tiny = TinyConfig(num_layers=2, hidden_size=32, vocab_size=500)
    model, tokenizer = new_tiny_model(tiny, [text for pair in pairs for text in pair])
    prepare_for_answers(model, tokenizer)
    return model, PromptTemplate.of(tokenizer)


def _train(config: RunConfig) -> list[Step]:
    """Eight steps."""
    model, template = _fresh()
    plan, reference = plan_of(config, BENCHMARK, template, model, lambda *phase: None)
    gates = config.adapter if isinstance(config.adapter, GrunConfig) else None
    steps: list[Step] = []
    unlearn(
        config.adapter.attach(model, config.seed),
        plan,
        forget_loss=config.forget_loss,
        retain_loss=config.retain_loss,
        training=config.training,
        learning_rate=config.adapter.learning_rate,
        gate_weight=gates.gate_weight if gates else 0.0,
        gate_warmup_steps=gates.gate_warmup_steps if gates else 0,
        reference=reference,
        seed=config.seed,
        report=steps.append,
        progress=lambda *phase: None,
    )
    return steps


@pytest.mark.parametrize("retain_loss", RETAIN_NEEDS)
@pytest.mark.parametrize("forget_loss", FORGET_LOSSES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_pair_trains(adapter: str, forget_loss: str, retain_loss: str) -> None:
    """Its forget loss falls over eight steps; a pair that means nothing is refused in one line."""
    changes = {"adapter": adapter, "adapter.learning_rate": 3e-3, "forget_loss": forget_loss}
    settings = overlay(SMALL, {**changes, "retain_loss": retain_loss})
    if retain_loss == "rmu_mse" and forget_loss != "rmu":
        with pytest.raises(UserError, match="retain_loss: rmu_mse keeps the layer"):
            run_config(settings)
        return
    steps = _train(run_config(settings))
    assert len(steps) == 8
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)
    assert steps[-1].forget_loss < steps[0].forget_loss or forget_loss in WEIGHTED


@pytest.mark.parametrize("gate_function", ["linear", "mlp_3", "mlp_5"])
@pytest.mark.parametrize("gate_weight", [0.0, 10.0])
@pytest.mark.parametrize("gate_warmup_steps", [0, 4])
def test_what_a_step_minimises(gate_function: str, gate_weight: float, gate_warmup_steps: int) -> None:
    """warm-up · (forget_weight · forget + retain_weight · retain) + gate_weight · gate, the gate term never scaled."""
    changes = {
        "adapter.gate_function": gate_function,
        "adapter.gate_weight": gate_weight,
        "adapter.gate_warmup_steps": gate_warmup_steps,
        "training.forget_weight": 0.5,
        "training.retain_weight": 3.0,
    }
    for step in _train(run_config(overlay(SMALL, {"adapter": "grun", **changes}))):
        warm = min(1.0, step.step / gate_warmup_steps) if gate_warmup_steps else 1.0
        assert step.gate_loss is not None
        expected = warm * (0.5 * step.forget_loss + 3.0 * step.retain_loss) + gate_weight * step.gate_loss
        assert step.loss == pytest.approx(expected, rel=1e-5)


def test_without_a_gate_loss_the_gates_still_learn() -> None:
    """They get their gradient from the forget and retain losses alone."""
    config = run_config(overlay(SMALL, {"adapter": "grun", "adapter.gate_weight": 0.0, "seed": 1}))
    steps = _train(config)
    assert len({step.gate_loss for step in steps}) == len(steps)


def test_seeds_differ_and_repeat() -> None:
    """Another seed draws other batches and initial values; the same seed gives the same losses to the last bit."""
    one, again, other = (
        [step.loss for step in _train(run_config(overlay(SMALL, {"seed": seed})))] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
