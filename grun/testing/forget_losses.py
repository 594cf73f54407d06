"""What every forget loss must keep."""

from typing import Any

import torch

from grun.losses import ForgetScores, num_units
from grun.testing.scores import NUM_TOKENS, FreeModel


class ForgetLossContract:
    """Give the fixture `loss`: an instance of the config."""

    def test_is_a_finite_scalar_with_a_gradient_for_every_token(self, loss: Any) -> None:
        """A token that gets none is never forgotten; only answers' first ones may be left out, and that is said."""
        model = FreeModel(list(loss.targets))
        scores = _asked(loss, model)
        left_out_N = next(iter(scores.values())).is_first_N if loss.mean_over == "later_tokens" else False
        value = loss(scores)
        value.backward()
        assert value.shape == ()
        assert torch.isfinite(value)
        for leaf in model.leaves(hidden=loss.hidden_layer is not None):
            assert leaf.grad is not None
            assert ((leaf.grad != 0).any(dim=1) ^ left_out_N).all()

    def test_a_step_down_pushes_its_targets_the_right_way(self, loss: Any) -> None:
        """It raises the nll of every answer and lowers that of everything else; one that steers a layer falls."""
        model = FreeModel(list(loss.targets))
        before = {name: model.nll(name) for name in loss.targets}
        value = loss(_asked(loss, model))
        value.backward()
        model.step_down()
        if loss.hidden_layer is not None:
            assert loss(_asked(loss, model)) < value
            return
        for name in loss.targets:
            after = model.nll(name)
            assert (after > before[name] if name == "answer" else after < before[name]).all(), name

    def test_stays_finite_on_a_wrecked_model(self, loss: Any) -> None:
        """Logits of tens of thousands: neither value nor gradient overflows."""
        model = FreeModel(list(loss.targets), wrecked=True)
        value = loss(_asked(loss, model))
        value.backward()
        assert torch.isfinite(value)
        for leaf in model.leaves(hidden=loss.hidden_layer is not None):
            assert leaf.grad is None or torch.isfinite(leaf.grad).all()

    def test_a_batch_is_the_mean_of_its_parts(self, loss: Any) -> None:
        """Cut between its two sequences, by what `mean_over` says the loss is a mean of: so workers share a step."""
        model = FreeModel(list(loss.targets))
        parts = [loss(_asked(loss, model, only=row)) for row in range(2)]
        shares = [num_units([count], loss.mean_over) / num_units(NUM_TOKENS, loss.mean_over) for count in NUM_TOKENS]
        together = sum(share * part for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(together, loss(_asked(loss, model)))

    def test_says_what_it_looks_at(self, loss: Any) -> None:
        """At one target or more, and of the untouched model at nothing that only retain losses have."""
        assert loss.targets
        assert loss.reference in (None, "nll", "logits")


def _asked(loss: Any, model: FreeModel, only: int | None = None) -> ForgetScores:
    return model.scores(reference=loss.reference, hidden=loss.hidden_layer is not None, only=only)
