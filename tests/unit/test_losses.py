"""Losses against values derived by hand."""

import math

import pytest
import torch

from grun.forget_losses.ce_u import CeUConfig, ce_u_loss
from grun.forget_losses.dpo import dpo_loss
from grun.forget_losses.grad_ascent import grad_ascent_loss
from grun.forget_losses.idk import idk_loss
from grun.forget_losses.npo import npo_loss
from grun.forget_losses.pdu import margin_loss
from grun.forget_losses.rmu import rmu_loss, steering_vector
from grun.forget_losses.satimp import satimp_loss
from grun.forget_losses.simnpo import simnpo_loss
from grun.forget_losses.undial import undial_loss
from grun.forget_losses.wga import wga_loss
from grun.losses import AnswerScores, gate_bce, kl_divergence, mean_token_nll, num_units, sequence_sum, token_nll
from grun.retain_losses.pdu import dual_step


def test_token_nll_of_uniform_logits() -> None:
    """Equal logits over 8 tokens: every token has probability 1/8, nll ln 8."""
    nll = token_nll(torch.zeros(3, 8), torch.tensor([0, 5, 7]))
    torch.testing.assert_close(nll, torch.full((3,), math.log(8)))


def test_token_nll_is_computed_in_float32() -> None:
    """bfloat16 logits of 10 and 0: ln(1 + e^-10) = 4.54e-5, which bfloat16 arithmetic would round to 0."""
    nll = token_nll(torch.tensor([[10.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0]))
    assert nll.dtype == torch.float32
    assert nll.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


def test_sequence_sum() -> None:
    """Tokens 1, 2 belong to sequence 0 and 3, 4, 5 to sequence 1; sequence 2 has none: 3, 12, 0."""
    total = sequence_sum(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([0, 0, 1, 1, 1]), 3)
    assert total.tolist() == [3.0, 12.0, 0.0]


def test_mean_token_nll_weighs_by_length() -> None:
    """6 nats over 2 tokens and 1 nat over 5: 7 nats over 7 tokens is 1 (the mean of means would be 1.6)."""
    assert mean_token_nll(torch.tensor([6.0, 1.0]), torch.tensor([2.0, 5.0])).item() == pytest.approx(1.0)


def test_grad_ascent_is_minus_the_mean_and_raises_nll() -> None:
    """Descending on −7/7 moves every nll up: the gradient is −1/7 for each."""
    nll = torch.tensor([6.0, 1.0], requires_grad=True)
    loss = grad_ascent_loss(nll, torch.tensor([2.0, 5.0]))
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    torch.testing.assert_close(nll.grad, torch.full((2,), -1 / 7))


def test_idk_lowers_the_refusals_nll() -> None:
    """The mirror image: the gradient on the refusal's nll is +1/7."""
    nll = torch.tensor([6.0, 1.0], requires_grad=True)
    idk_loss(nll, torch.tensor([2.0, 5.0])).backward()
    torch.testing.assert_close(nll.grad, torch.full((2,), 1 / 7))


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_at_the_reference(beta: float) -> None:
    """nll = nll_ref: −(2/β) log σ(0) = 2 ln2 / β, and the gradient is −2 σ(0) / B = −1/B each."""
    nll = torch.tensor([3.0, 8.0], requires_grad=True)
    loss = npo_loss(nll, nll.detach(), beta=beta)
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2) / beta)
    torch.testing.assert_close(nll.grad, torch.full((2,), -0.5))


def test_npo_equals_its_probability_form() -> None:
    """(2/β) log(1 + (p/p_ref)^β) with p = e^-4, p_ref = e^-3, β = 0.5: 4 ln(1 + e^-0.5)."""
    loss = npo_loss(torch.tensor([4.0]), torch.tensor([3.0]), beta=0.5)
    assert loss.item() == pytest.approx(4 * math.log(1 + math.exp(-0.5)))


def test_npo_fades() -> None:
    """Far below the reference probability the push is gone: at nll − nll_ref = 100, β = 0.1, it is 2 σ(−10)."""
    nll = torch.tensor([103.0], requires_grad=True)
    npo_loss(nll, torch.tensor([3.0]), beta=0.1).backward()
    assert nll.grad is not None
    assert nll.grad.item() == pytest.approx(-2 / (1 + math.exp(10)), rel=1e-4)


def test_gate_bce_by_hand() -> None:
    """Gates 0.75 and 0.5 on a forget prompt, 0.75 and 0.5 on a retain prompt: −(ln .75 + ln .5 + ln .25 + ln .5)/4."""
    logit = math.log(3.0)  # sigmoid = 0.75
    loss = gate_bce(torch.tensor([[logit, 0.0], [logit, 0.0]]), torch.tensor([True, False]))
    expected = -(math.log(0.75) + math.log(0.5) + math.log(0.25) + math.log(0.5)) / 4
    assert loss.item() == pytest.approx(expected)


def test_gate_bce_has_a_gradient_where_the_sigmoid_has_none() -> None:
    """A logit of 60 on a retain prompt: sigmoid is 1 in float32, yet the gate must still be pulled shut."""
    logit = torch.tensor([[60.0]], requires_grad=True)
    gate_bce(logit, torch.tensor([False])).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(1.0)


def test_simnpo_by_hand() -> None:
    """6 nats over 3 tokens, β = 0.5, γ = 1: −4 log σ(0.5·2 − 1) = 4 ln 2; gradient −2 σ(0)/n = −1/3: nll rises.

    In its code's form δ = γ/β = 2 nats: −4 log σ(0.5 (2 − 2)), the same.
    """
    nll = torch.tensor([6.0], requires_grad=True)
    loss = simnpo_loss(nll, torch.tensor([3.0]), beta=0.5, gamma=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(4 * math.log(2))
    assert nll.grad is not None
    assert nll.grad.item() == pytest.approx(-1 / 3)


def test_dpo_by_hand() -> None:
    """At the reference both changes are 0: 2 ln2 / β. Answer 3 nats up, refusal 1 down, β = 0.5: −4 log σ(2)."""
    zero = torch.zeros(2)
    assert dpo_loss(zero, zero, beta=0.1).item() == pytest.approx(20 * math.log(2))
    answer, refusal = torch.tensor([3.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    loss = dpo_loss(answer, refusal, beta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(4 * math.log(1 + math.exp(-2)))
    assert answer.grad is not None
    assert refusal.grad is not None
    assert answer.grad.item() < 0 < refusal.grad.item()


def test_wga_by_hand() -> None:
    """p = 1/2 and 1/4, β = 1: −(½ ln 2 + ¼ · 2 ln 2)/2 = −½ ln 2; gradients −¼ and −⅛. β = 0 is the plain mean."""
    nll = torch.tensor([math.log(2), math.log(4)], requires_grad=True)
    loss = wga_loss(nll, beta=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(2) / 2)
    torch.testing.assert_close(nll.grad, torch.tensor([-0.25, -0.125]))
    assert wga_loss(nll, beta=0.0).item() == pytest.approx(-1.5 * math.log(2))


def test_satimp_by_hand() -> None:
    """p = 1/2, β1 = 2, β2 = 1: weight 1/8. A certain token (p = 1) weighs nothing."""
    assert satimp_loss(torch.tensor([math.log(2)]), beta1=2.0, beta2=1.0).item() == pytest.approx(-math.log(2) / 8)
    assert satimp_loss(torch.tensor([0.0]), beta1=2.0, beta2=1.0).item() == 0.0


def test_ce_u_by_hand() -> None:
    """Equal logits over 4 tokens, label out: ⅓ on each other one, each of nll ln 4. Gradient p − q: ¼ on the label."""
    logits = torch.zeros(1, 4, requires_grad=True)
    loss = ce_u_loss(logits, torch.tensor([2]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 12, -1 / 12, 1 / 4, -1 / 12]]))


def test_ce_u_leaves_first_tokens_out() -> None:
    """Answers of 2 and 1 tokens have one later token: q = (½, ½, 0) against p = ⅓ each is ln 3, gradient p − q there.

    The first token's gradient is 0, and so is the loss of an answer with no other. With it there are 3 tokens.
    """
    logits = torch.zeros(3, 3, requires_grad=True)
    scores = {"answer": AnswerScores.of(logits, [[0, 2], [1]])}
    loss = CeUConfig()(scores)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    torch.testing.assert_close(logits.grad, torch.tensor([[0, 0, 0], [-1 / 6, -1 / 6, 1 / 3], [0, 0, 0]]))
    assert num_units([2, 1], CeUConfig().mean_over) == num_units([2], CeUConfig().mean_over) == 1
    assert CeUConfig()({"answer": AnswerScores.of(logits[:1], [[0]])}).item() == 0.0
    whole = CeUConfig(first_token=True)
    assert (num_units([2, 1], whole.mean_over), num_units([2, 1], "sequences")) == (3, 2)
    (gradient,) = torch.autograd.grad(whole(scores), logits)
    assert (gradient.abs().sum(dim=1) > 0).all()


def test_undial_by_hand() -> None:
    """Reference logits equal over 3 tokens, label lowered by ln 2: q = (1/5, 2/5, 2/5) against p = ⅓ each: ln 3.

    The gradient is p − q: 2/15 on the label, −1/15 on the others. With p = q the gradient is 0.
    """
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = undial_loss(logits, torch.zeros(1, 3), torch.tensor([0]), beta=math.log(2))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    torch.testing.assert_close(logits.grad, torch.tensor([[2 / 15, -1 / 15, -1 / 15]]))


def test_pdu_by_hand() -> None:
    """Logits 3, 1, 2: (3 − 2)² = 1; logits 5, 5, 5: 0; their mean ½. Gradient (3 − 2)(one-hot of the 3 − ⅓ each).

    Down it goes: the largest logit falls and the others rise. Equal logits stay.
    """
    logits = torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]], requires_grad=True)
    loss = margin_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    torch.testing.assert_close(logits.grad, torch.tensor([[2 / 3, -1 / 3, -1 / 3], [0.0, 0.0, 0.0]]))


def test_a_dual_step_by_hand() -> None:
    """λ = 2, η = 5, ε = 0.3: at 0.5 nats 2 + 5 · 0.2 = 3, at 0.1 nats 2 − 1 = 1, at the bound 2, and never below 0."""
    steps = {loss: dual_step(2.0, loss, max_loss=0.3, dual_rate=5.0) for loss in (0.5, 0.1, 0.3)}
    assert steps == pytest.approx({0.5: 3.0, 0.1: 1.0, 0.3: 2.0})
    assert dual_step(0.5, 0.0, max_loss=0.3, dual_rate=5.0) == 0.0


def test_rmu_by_hand() -> None:
    """Distance (3, 0) from the vector over 2 dimensions: 9/2; the gradient points away from the vector."""
    hidden = torch.tensor([[4.0, 2.0]], requires_grad=True)
    loss = rmu_loss(hidden, torch.tensor([1.0, 2.0]))
    loss.backward()
    assert loss.item() == pytest.approx(4.5)
    torch.testing.assert_close(hidden.grad, torch.tensor([[3.0, 0.0]]))


def test_the_steering_vector() -> None:
    """Length c, no negative entry, the same for the same seed."""
    vector = steering_vector(64, 30.0, 1)
    assert vector.norm().item() == pytest.approx(30.0)
    assert (vector >= 0).all()
    assert torch.equal(vector, steering_vector(64, 30.0, 1))
    assert not torch.equal(vector, steering_vector(64, 30.0, 2))


def test_kl_by_hand() -> None:
    """Reference (½, ½) against (¼, ¾): ½ ln 2 + ½ ln ⅔. The same distributions: 0, whatever is added to the logits."""
    reference, model = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    assert kl_divergence(reference, model).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(model, model + 5.0).item() == pytest.approx(0.0, abs=1e-7)
