"""Gradients of the weights under an adapter, by hand and as an evaluation writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from bench.benchmarks.items import Benchmark
from bench.evaluation.asking import Asking, EvaluationConfig
from bench.evaluation.evaluate import evaluate
from bench.evaluation.score import score
from grun.adapters.grun import GrunConfig
from grun.attacks.gradients import gradient_norms
from grun.data import Example
from grun.model.forward import AnswerOutput, PlainModel
from grun.testing.small import FORGET, SmallModels


class Sum(PlainModel):
    """Says of every token a + 3 b, whatever was asked."""

    def answer_output(self, examples: Sequence[Example], hidden_layer: Any = None) -> AnswerOutput:
        logits_V = self.model.a + 3.0 * self.model.b
        num_tokens = sum(len(example.answer_ids) for example in examples)
        return AnswerOutput(examples=examples, logits_NV=logits_V.expand(num_tokens, -1))


def test_gradient_norms_by_hand() -> None:
    """Equal logits over 2 tokens: the gradient is (−½, ½) on a and three times that on b, of lengths √½ and 3 √½.

    Their mean is 2 √½ = √2. Of an answer with both tokens it is 0, as each is as likely as it should be.
    """
    model = nn.Module()
    model.a, model.b = (nn.Parameter(torch.zeros(2), requires_grad=False) for _ in range(2))
    norms = gradient_norms(Sum(model), [Example(prompt_ids=(0,), answer_ids=ids) for ids in ((0,), (1, 1), (0, 1))])
    assert norms == pytest.approx([math.sqrt(2), math.sqrt(2), 0.0])
    assert not model.a.requires_grad
    assert model.a.grad is None


def test_an_open_gate_changes_the_gradients_and_a_shut_one_does_not(tmp_path: Any) -> None:
    """Edits leave the weights frozen before and after; with all gates shut the model is the one without edits."""
    model, template = SmallModels.made_in(tmp_path / "base").fresh()
    examples = [item.example(template) for item in FORGET[:2]]
    bare = gradient_norms(PlainModel(model), examples)
    edited, shut = (GrunConfig(layers=(1,), gate_threshold=tau).attach(model, 0) for tau in (0.0, 1.0))
    for each in (edited, shut):
        each.train(False)
    assert gradient_norms(shut, examples) == pytest.approx(bare)
    assert gradient_norms(edited, examples) != pytest.approx(bare)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_was_learned_is_flat(fresh_target: Any, small_benchmark: Benchmark) -> None:
    """The target model's gradients tell the forget set from the holdout set; nothing else is asked for them.

    An item's is that of its answer without the end of the turn.
    """
    model, template = fresh_target()
    config = EvaluationConfig(gradient_norms=True, max_items_per_split=4, max_new_tokens=1)
    splits = {name: small_benchmark.evaluation[name] for name in ("forget", "retain", "holdout")}
    rows = evaluate(Asking(adapted=PlainModel(model), template=template, config=config), splits)
    assert [row["gradient_norm"] is not None for row in rows] == [True] * 4 + [False] * 4 + [True] * 4
    assert score(rows, None, 0.0)["mia_gradnorm_auc"] > 0.9
    first = splits["forget"][0].example(template)
    (own,) = gradient_norms(PlainModel(model), [Example(prompt_ids=first.prompt_ids, answer_ids=first.answer_ids[:-1])])
    assert rows[0]["gradient_norm"] == pytest.approx(own)
