"""Likelihoods token by token, from logits that are known."""

import math
from collections.abc import Sequence

import pytest
import torch

from grun.data import Example
from grun.model.forward import AnswerOutput
from grun.model.likelihood import answer_likelihoods


class _Fixed:
    """Says the same of every token: p = ½, ¼, ¼."""

    def answer_output(self, examples: Sequence[Example]) -> AnswerOutput:
        num_tokens = sum(len(example.answer_ids) for example in examples)
        logits_NV = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(num_tokens, 1) + 3.0
        return AnswerOutput(examples=examples, logits_NV=logits_NV)


def test_token_details_by_hand() -> None:
    """log p is −ln 2 half the time and −2 ln 2 half the time: mean −1.5 ln 2, deviation 0.5 ln 2."""
    examples = [Example(prompt_ids=(1,), answer_ids=(0, 1)), Example(prompt_ids=(1, 1), answer_ids=(2,))]
    first, second = answer_likelihoods(_Fixed(), examples, with_tokens=[True, False], batch_size=2)  # type: ignore[arg-type]
    log2 = math.log(2)
    assert (first.nll, second.nll) == (pytest.approx(3 * log2), pytest.approx(2 * log2))
    assert second.tokens is None
    assert first.tokens is not None
    assert first.tokens.nll == pytest.approx([log2, 2 * log2])
    assert first.tokens.is_argmax == [True, False]
    assert first.tokens.mean_log_p == pytest.approx([-1.5 * log2] * 2)
    assert first.tokens.std_log_p == pytest.approx([0.5 * log2] * 2)
