"""Every adapter of ours keeps the contract, new ones included; and what holds of some of them alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from bench.benchmarks.items import Benchmark
from grun.adapters import AdapterConfig
from grun.adapters.lora import LoraConfig
from grun.data import Example
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.model import forward
from grun.model.forward import PlainModel
from grun.model.likelihood import answer_likelihoods
from grun.prompts.template import PromptTemplate
from grun.retain_losses.ce import CeConfig
from grun.testing.adapters import AdapterContract
from grun.training.plan import plan_steps
from grun.training.recipe import Recipe, TrainingConfig
from grun.training.unlearn import unlearn

Fresh = Callable[[], tuple[Any, PromptTemplate]]
CONFIGS = {kind.name: kind() for kind in get_args(AdapterConfig)}
CONFIGS |= {f"{name}, latched": replace(CONFIGS[name], edits="answer") for name in ("grun", "reft")}
CONFIGS["grun, router"] = replace(CONFIGS["grun"], gate_function="router")
CONFIGS["grun, mean router"] = replace(CONFIGS["grun"], gate_function="mean_router")
CONFIGS["gated_lora, mean router"] = replace(CONFIGS["gated_lora"], gate_function="mean_router")
CONFIGS["gated_lora, linear"] = replace(CONFIGS["gated_lora"], gate_function="linear")


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def batch(fresh_target: Fresh, small_benchmark: Benchmark) -> list[Example]:
    _, template = fresh_target()
    return [template.example(item.question, item.answer) for item in small_benchmark.forget_set]


def _train(config: Any, adapted: Any, template: PromptTemplate, benchmark: Benchmark) -> None:
    recipe = Recipe(
        forget_loss=GradAscentConfig(),
        retain_loss=CeConfig(),
        training=TrainingConfig(num_epochs=1, batch_size=4),
        learning_rate=1e-2,
        gate_weight=1.0,
    )
    forget, retain = (
        [item.example(template) for item in items] for items in (benchmark.forget_set, benchmark.retain_set)
    )
    unlearn(adapted, plan_steps(recipe, {"answer": [[example] for example in forget]}, retain), recipe, None)


def _logits(adapted: Any, batch: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        return adapted.answer_output(batch).logits_NV


class TestAdapters(AdapterContract):
    @pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
    def config(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def test_loras_dropout_is_on_in_training_alone(fresh_target: Fresh, small_benchmark: Benchmark, batch: Any) -> None:
    """Once its updates are not 0, two passes of the same batch differ, and they do not when it is evaluated."""
    model, template = fresh_target()
    config = LoraConfig(dropout=0.5)
    adapted = config.attach(model, 0)
    _train(config, adapted, template, small_benchmark)
    assert torch.equal(_logits(adapted, batch), _logits(adapted, batch))
    adapted.train(True)
    assert not torch.equal(_logits(adapted, batch), _logits(adapted, batch))


@pytest.mark.parametrize("name", ["full", "lora", "none"])
def test_before_the_first_step_nothing_changes(name: str, fresh_target: Fresh, batch: list[Example]) -> None:
    """LoRA's updates start at zero and full fine-tuning at the model itself: base logits exactly."""
    kind = next(kind for kind in get_args(AdapterConfig) if kind.name == name)
    model, _ = fresh_target()
    base = _logits(PlainModel(model), batch)
    adapted = kind().attach(model, 0)
    adapted.train(False)
    assert torch.equal(_logits(adapted, batch), base)


def test_the_base_model_comes_back(config: Any, fresh_target: Fresh, small_benchmark: Benchmark, batch: Any) -> None:
    """Edits and updates are beside the weights, which never moved: without them, base logits exactly."""
    if config.name in ("full", "none"):
        pytest.skip("there is nothing to take off")
    model, template = fresh_target()
    base = _logits(PlainModel(model), batch)
    adapted = config.attach(model, 0)
    _train(config, adapted, template, small_benchmark)
    assert not torch.equal(_logits(adapted, batch), base)
    without = adapted.model.unload() if config.name == "lora" else adapted.model
    assert torch.equal(_logits(PlainModel(without), batch), base)


def test_sixteen_in_one_batch_are_sixteen_alone(
    fresh_target: Fresh, small_benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per-item nll to 1e-5, in one padded batch against batches of one."""
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", 10**9)  # never split
    model, template = fresh_target()
    items = [*small_benchmark.forget_set, *small_benchmark.retain_set][:16]
    examples = [template.example(*item.pair) for item in items]
    assert len({len(example) for example in examples}) > 4
    together, alone = (
        answer_likelihoods(PlainModel(model), examples, with_tokens=[False] * 16, batch_size=size) for size in (16, 1)
    )
    assert [each.nll for each in together] == pytest.approx([each.nll for each in alone], rel=1e-5, abs=1e-5)
