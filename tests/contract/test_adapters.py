"""What every adapter must keep, new ones included: only its own parameters train, save → load is bit-exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from bench.benchmarks.items import Benchmark
from grun.adapters import AdapterConfig
from grun.data import Example
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.model import forward
from grun.model.forward import PlainModel
from grun.model.likelihood import answer_likelihoods
from grun.prompts.template import PromptTemplate
from grun.retain_losses.ce import CeConfig
from grun.training.plan import plan_steps
from grun.training.recipe import Recipe, TrainingConfig
from grun.training.unlearn import unlearn
from grun.unlearned import load, save

Fresh = Callable[[], tuple[Any, PromptTemplate]]


@pytest.fixture(params=get_args(AdapterConfig), ids=lambda kind: kind.name)
def config(request: pytest.FixtureRequest) -> Any:
    return request.param()


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


def test_only_its_own_parameters_train(config: Any, fresh_target: Fresh, small_benchmark: Benchmark) -> None:
    if config.name == "none":
        pytest.skip("nothing trains")
    model, template = fresh_target()
    adapted = config.attach(model, 0)
    own = {id(parameter) for parameter in adapted.trainable_parameters()}
    everything = dict(adapted.model.named_parameters())
    before = {name: p.detach().clone() for name, p in everything.items()}
    own_before = [parameter.detach().clone() for parameter in adapted.trainable_parameters()]
    _train(config, adapted, template, small_benchmark)
    for name, parameter in everything.items():
        assert id(parameter) in own or torch.equal(parameter, before[name]), f"{name} moved"
    moved = [not torch.equal(p, b) for p, b in zip(adapted.trainable_parameters(), own_before, strict=True)]
    assert all(moved), f"{moved.count(False)} of its parameters never moved"


def test_save_and_load_are_bit_exact(
    config: Any,
    fresh_target: Fresh,
    small_benchmark: Benchmark,
    batch: list[Example],
    tmp_path: Path,
    target_folder: str,
) -> None:
    model, template = fresh_target()
    adapted = config.attach(model, 0)
    if config.name != "none":
        _train(config, adapted, template, small_benchmark)
    save(adapted, config, target_folder, tmp_path / "module")
    loaded = load(tmp_path / "module")
    assert torch.equal(_logits(adapted, batch), _logits(loaded.adapted, batch))
    questions = [item.question for item in small_benchmark.forget_set]
    generated = adapted.generate([template.prompt_ids(question) for question in questions], 20)
    assert loaded.generate(questions, 20) == [template.text(answer) for answer in generated.answers]
    assert loaded.generate(questions[0], 20) == loaded.generate(questions, 20)[0]
    assert not list((tmp_path / "module").glob("*.bin")), "nothing is pickled"


def test_attach_depends_on_its_seed_alone(config: Any, fresh_target: Fresh, batch: list[Example]) -> None:
    def attached(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)
        model, _ = fresh_target()
        return _logits(config.attach(model, seed), batch)

    assert torch.equal(attached(1), attached(1))


def test_evaluation_mode_is_deterministic(config: Any, fresh_target: Fresh, batch: list[Example]) -> None:
    model, _ = fresh_target()
    adapted = config.attach(model, 0)
    adapted.train(True)
    adapted.train(False)
    assert torch.equal(_logits(adapted, batch), _logits(adapted, batch))


def test_a_batch_gives_what_its_sequences_give_alone(
    config: Any, fresh_target: Fresh, small_benchmark: Benchmark
) -> None:
    """Padding and company change no logit: one batch of 10 = 10 batches of 1."""
    model, template = fresh_target()
    adapted = config.attach(model, 0)
    adapted.train(False)
    examples = [template.example(item.question, item.answer) for item in small_benchmark.forget_set]
    together = _logits(adapted, examples)
    alone = torch.cat([_logits(adapted, [example]) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    prompts = [example.prompt_ids for example in examples]
    apart = [adapted.generate([prompt], 20).answers[0] for prompt in prompts]
    assert adapted.generate(prompts, 20).answers == apart


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
    monkeypatch.setattr(forward, "GROUP_OVERHEAD_TOKENS", {})  # never split
    model, template = fresh_target()
    items = [*small_benchmark.forget_set, *small_benchmark.retain_set][:16]
    examples = [template.example(*item.pair) for item in items]
    assert len({len(example) for example in examples}) > 4
    together, alone = (
        answer_likelihoods(PlainModel(model), examples, with_tokens=[False] * 16, batch_size=size) for size in (16, 1)
    )
    assert [each.nll for each in together] == pytest.approx([each.nll for each in alone], rel=1e-5, abs=1e-5)
