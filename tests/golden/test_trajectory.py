"""A refactor keeps the training trajectory: losses of the first steps, from weights that need no training.

When a change is meant to move them, run `GOLDEN_UPDATE=1 pytest tests/golden` and say why in the commit.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks.authors import AuthorsConfig
from bench.models.pretrained import TinyConfig, new_tiny_model
from grun.adapters.full import FullConfig
from grun.adapters.grun import GrunConfig
from grun.adapters.lora import LoraConfig
from grun.adapters.reft import ReftConfig
from grun.forget_losses.dpo import DpoConfig
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.forget_losses.idk import IdkConfig
from grun.forget_losses.npo import NpoConfig
from grun.forget_losses.rmu import RmuConfig
from grun.model.forward import set_answer_ends
from grun.prompts.template import PromptTemplate
from grun.retain_losses.ce import CeConfig
from grun.retain_losses.kl import KlConfig
from grun.retain_losses.rmu_mse import RmuMseConfig
from grun.targets.target import ForgetSet
from grun.training.plan import plan_steps
from grun.training.recipe import Recipe, TrainingConfig
from grun.training.reference import reference_of
from grun.training.unlearn import Step, unlearn

GOLDEN = Path(__file__).with_name("trajectory.json")
RUNS: dict[str, Any] = {
    "grun+npo": (
        GrunConfig(layers=(0, 1), learning_rate=1e-2, gate_function="mlp_3", gate_warmup_steps=3),
        NpoConfig(),
        CeConfig(),
    ),
    "grun+idk": (GrunConfig(layers=(1,), learning_rate=1e-2), IdkConfig(), CeConfig()),
    "lora+grad_ascent": (LoraConfig(learning_rate=1e-2, dropout=0.0), GradAscentConfig(), CeConfig()),
    "full+npo": (FullConfig(learning_rate=1e-3), NpoConfig(beta=0.5), CeConfig()),
    "reft+dpo+kl": (ReftConfig(layers=(0, 1), learning_rate=1e-2), DpoConfig(), KlConfig()),
    "full+rmu+rmu_mse": (FullConfig(learning_rate=1e-3), RmuConfig(steering_coefficient=3.0), RmuMseConfig()),
}


@pytest.mark.parametrize("name", RUNS)
def test_trajectory(name: str) -> None:
    adapter, forget_loss, retain_loss = RUNS[name]
    benchmark = AuthorsConfig(num_authors=5).load()
    pairs = [item.pair for item in [*benchmark.forget_set, *benchmark.retain_set]]
    tiny = TinyConfig(num_layers=2, hidden_size=32, vocab_size=500)
    model, tokenizer = new_tiny_model(tiny, [text for pair in pairs for text in pair])
    template = PromptTemplate.of(tokenizer)
    set_answer_ends(model, template)
    recipe = Recipe(
        forget_loss=forget_loss,
        retain_loss=retain_loss,
        training=TrainingConfig(
            num_epochs=2, batch_size=4, retain_weight=2.0 if forget_loss.name == "grad_ascent" else 1.0
        ),
        learning_rate=adapter.learning_rate,
        gate_weight=10.0,
        gate_warmup_steps=adapter.gate_warmup_steps if adapter.is_gated else 0,
    )
    plan = plan_steps(
        recipe,
        ForgetSet(items=benchmark.forget_set, template=template, model=model).examples(forget_loss.targets),
        [item.example(template) for item in benchmark.retain_set],
    )
    reference = reference_of(model, plan, recipe, batch_size=4, progress=lambda *phase: None)
    steps: list[Step] = []
    unlearn(adapter.attach(model, 0), plan, recipe, reference, report=steps.append)
    losses = [step.loss for step in steps]
    assert len(losses) == 6, "10 forget items in batches of 4, twice"
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN_UPDATE"):
        GOLDEN.write_text(json.dumps(golden | {name: losses}, indent=1) + "\n")
    else:
        assert losses == pytest.approx(golden[name], rel=1e-4)
