"""What every retain loss must keep."""

from typing import Any

import torch

from grun.losses import AnswerScores
from grun.testing.scores import NUM_TOKENS, FreeModel


class RetainLossContract:
    """Give the fixture `loss`: an instance of the config."""

    def test_is_a_finite_scalar_that_a_step_down_lowers(self, loss: Any) -> None:
        """And it has a gradient for every token: one that gets none is not kept."""
        model = FreeModel(["answer"])
        value = loss(_asked(loss, model))
        value.backward()
        assert value.shape == ()
        assert torch.isfinite(value)
        for leaf in model.leaves(hidden=loss.reference == "hidden"):
            assert leaf.grad is not None
            assert (leaf.grad != 0).any(dim=1).all()
        model.step_down()
        assert loss(_asked(loss, model)) < value

    def test_a_batch_is_the_mean_of_its_parts(self, loss: Any) -> None:
        """Cut between its two sequences, as a mean over tokens: so workers share a step."""
        model = FreeModel(["answer"])
        parts = [loss(_asked(loss, model, only=row)) for row in range(2)]
        together = sum(count / sum(NUM_TOKENS) * part for count, part in zip(NUM_TOKENS, parts, strict=True))
        torch.testing.assert_close(together, loss(_asked(loss, model)))

    def test_its_weight_is_a_number_that_follows_from_numbers(self, loss: Any) -> None:
        """Never negative, and the same for the same step: all workers, and a training that goes on, agree on it."""
        for weight in (0.0, 1.0, 30.0):
            for value in (0.0, 0.5, 8.0):
                after = loss.next_weight(weight, value)
                assert isinstance(after, float)
                assert after >= 0
                assert after == loss.next_weight(weight, value)


def _asked(loss: Any, model: FreeModel, only: int | None = None) -> AnswerScores:
    return model.scores(reference=loss.reference, hidden=loss.reference == "hidden", only=only)["answer"]
