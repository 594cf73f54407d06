"""What every adapter must keep."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grun.data import Example
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.model.forward import Adapted
from grun.prompts.template import PromptTemplate
from grun.retain_losses.ce import CeConfig
from grun.targets.target import ForgetSet
from grun.testing.small import FORGET, RETAIN, SmallModels
from grun.training.plan import plan_steps
from grun.training.recipe import Recipe, TrainingConfig
from grun.training.unlearn import unlearn
from grun.unlearned import load, save

MAX_NEW_TOKENS = 12


class AdapterContract:
    """Give the fixture `config`: an instance. It must fit a model of three layers and hidden size 16."""

    @pytest.fixture
    def models(self, tmp_path: Path) -> SmallModels:
        """What the adapter is put on."""
        return SmallModels.made_in(tmp_path / "base")

    def test_only_its_own_parameters_train(self, config: Any, models: SmallModels) -> None:
        """All of them move, and no other weight does."""
        model, template = models.fresh()
        adapted = config.attach(model, 0)
        own = {id(parameter) for parameter in adapted.trainable_parameters()}
        assert bool(own) == (config.trains and config.has_loss)
        before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
        own_before = _values(adapted)
        _train(config, adapted, model, template)
        for name, parameter in adapted.model.named_parameters():
            assert id(parameter) in own or torch.equal(parameter, before[name]), f"{name} moved"
        moved = [not torch.equal(now, then) for now, then in zip(_values(adapted), own_before, strict=True)]
        assert all(moved), f"{moved.count(False)} of its parameters never moved"

    def test_save_and_load_are_bit_exact(self, config: Any, models: SmallModels, tmp_path: Path) -> None:
        """Trained, saved and loaded on another copy of the model: the same logits and the same answers."""
        adapted, template = _trained(config, models)
        save(adapted, config, str(models.folder), tmp_path / "module")
        loaded = load(tmp_path / "module")
        assert torch.equal(_logits(adapted, _examples(template)), _logits(loaded.adapted, _examples(template)))
        questions = [item.question for item in FORGET]
        generated = adapted.generate([template.prompt_ids(question) for question in questions], MAX_NEW_TOKENS)
        answers = loaded.generate(questions, MAX_NEW_TOKENS)
        assert answers == [template.text(answer) for answer in generated.answers]
        assert loaded.generate(questions[0], MAX_NEW_TOKENS) == answers[0]
        assert not list((tmp_path / "module").glob("*.bin")), "nothing is pickled"

    def test_initial_values_come_from_the_seed(self, config: Any, models: SmallModels) -> None:
        """And from nothing else; an adapter that trains weights of its own starts elsewhere with another seed."""

        def initial(seed: int) -> list[Tensor]:
            torch.manual_seed(torch.seed() % 1000)
            return _values(config.attach(models.fresh()[0], seed))

        one, again, other = (initial(seed) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
        if one and not config.trains_in_place:
            assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "the seed is ignored"

    def test_evaluation_mode_is_deterministic(self, config: Any, models: SmallModels) -> None:
        """Once trained: before that, what is dropped out of LoRA's updates is 0 anyway."""
        adapted, template = _trained(config, models)
        adapted.train(True)
        adapted.train(False)
        assert torch.equal(_logits(adapted, _examples(template)), _logits(adapted, _examples(template)))

    def test_a_batch_gives_what_its_sequences_give_alone(self, config: Any, models: SmallModels) -> None:
        """Padding and company change no logit and no answer."""
        adapted, template = _trained(config, models)
        examples = _examples(template)
        alone = torch.cat([_logits(adapted, [example]) for example in examples])
        torch.testing.assert_close(_logits(adapted, examples), alone, rtol=1e-5, atol=1e-4)
        prompts = [example.prompt_ids for example in examples]
        apart = [adapted.generate([prompt], MAX_NEW_TOKENS).answers[0] for prompt in prompts]
        assert adapted.generate(prompts, MAX_NEW_TOKENS).answers == apart

    def test_answers_to_one_prompt_are_scored_as_each_alone(self, config: Any, models: SmallModels) -> None:
        """Of one token, of several, and of another prompt between them."""
        adapted, template = _trained(config, models)
        one, other, *_ = _examples(template)
        answers = (one.answer_ids, other.answer_ids, one.answer_ids[:1], other.answer_ids[:3])
        examples = [replace(one, answer_ids=answer) for answer in answers]
        examples.insert(2, other)
        alone = torch.cat([_logits(adapted, [example]) for example in examples])
        torch.testing.assert_close(_logits(adapted, examples), alone, rtol=1e-5, atol=1e-4)

    def test_drafts_change_no_answer(self, config: Any, models: SmallModels) -> None:
        """Right to the end, wrong from some token on, too short, ended too early or missing: the same answers."""
        adapted, template = _trained(config, models)
        prompts = [example.prompt_ids for example in _examples(template)]
        answers = adapted.generate(prompts, MAX_NEW_TOKENS).answers
        assert_drafts_change_nothing(adapted, prompts, answers, template.end_id)


def assert_drafts_change_nothing(
    adapted: Adapted, prompts: Sequence[tuple[int, ...]], answers: Sequence[Sequence[int]], end_id: int
) -> None:
    """answers: without drafts, of at most MAX_NEW_TOKENS tokens. end_id: of a token that ends one."""
    for drafts in (
        [(*answer, end_id) for answer in answers],
        [[abs(token - (at > row)) for at, token in enumerate(answer)] for row, answer in enumerate(answers)],
        [answer[:row] for row, answer in enumerate(answers)],
        [(*answer[:row], end_id) for row, answer in enumerate(answers)],
        [(end_id,), *([()] * (len(answers) - 1))],
    ):
        assert adapted.generate(prompts, MAX_NEW_TOKENS, drafts).answers == answers


def _trained(config: Any, models: SmallModels) -> tuple[Any, PromptTemplate]:
    """A fresh adapter after `_train`."""
    model, template = models.fresh()
    adapted = config.attach(model, 0)
    _train(config, adapted, model, template)
    return adapted, template


def _train(config: Any, adapted: Any, model: Any, template: PromptTemplate) -> None:
    """Three steps, where there is something to train."""
    if not config.trains:
        return
    recipe = Recipe(
        forget_loss=GradAscentConfig(),
        retain_loss=CeConfig(),
        training=TrainingConfig(num_epochs=1, batch_size=2),
        learning_rate=1e-2,
        gate_weight=1.0,
    )
    forget = ForgetSet(items=FORGET, template=template, model=model).examples(recipe.forget_loss.targets)
    plan = plan_steps(recipe, forget, [item.example(template) for item in RETAIN])
    unlearn(adapted, plan, recipe, reference=None)


def _values(adapted: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in adapted.trainable_parameters()]


def _examples(template: PromptTemplate) -> list[Example]:
    return [item.example(template) for item in (*FORGET, *RETAIN)]


@torch.no_grad()
def _logits(adapted: Adapted, examples: list[Example]) -> Tensor:
    return adapted.answer_output(examples).logits_NV
