"""What forget items are made to say, on a model of random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grun.errors import UserError
from grun.forget_losses.altpo import AltpoConfig
from grun.losses import AnswerScores
from grun.targets.alternate import PER_ITEM, alternates
from grun.targets.target import ForgetSet, Texts
from grun.testing.small import FORGET, Question, SmallModels


@pytest.fixture
def forget(tmp_path: Path) -> ForgetSet:
    model, template = SmallModels.made_in(tmp_path).fresh()
    return ForgetSet(items=FORGET, template=template, model=model)


def test_alternates_are_made_up_and_the_same_again(forget: ForgetSet) -> None:
    """Five an item, no two items' alike in a model that says anything at random; each under its item's own prompt."""
    found = alternates(forget)
    torch.manual_seed(7)
    assert alternates(forget) == found
    assert [len(own) for own in found] == [PER_ITEM] * len(FORGET)
    own_answers = [item.example(forget.template) for item in FORGET]
    for own, answer in zip(found, own_answers, strict=True):
        assert {example.prompt_ids for example in own} == {answer.prompt_ids}
        assert answer not in own
    longest = max(len(answer.answer_ids) for answer in own_answers)
    assert all(1 <= len(example.answer_ids) <= longest + 1 for own in found for example in own), "EOS comes on top"
    assert len({example.answer_ids for own in found for example in own}) > 2 * len(FORGET)


def test_alternates_that_are_kept_are_not_made_again(forget: ForgetSet) -> None:
    kept: Texts = [[f"{item.answer} {number}" for number in range(PER_ITEM)] for item in FORGET]

    def keep(name: str, make: Any) -> Texts:
        assert name == "alternates"
        return kept

    held = ForgetSet(items=FORGET, template=forget.template, model=None, keep=keep)
    assert alternates(held)[1][2] == forget.template.example(FORGET[1].question, kept[1][2])


def test_who_asks_nothing_has_no_alternates(forget: ForgetSet) -> None:
    passage = Question(question="", answer="Ada holds a saw .", form="passage")
    with pytest.raises(UserError, match="forget_loss: makes up other answers, and the benchmark's forget set asks"):
        alternates(ForgetSet(items=[passage], template=forget.template, model=forget.model))


def test_altpo_by_hand() -> None:
    """Two tokens' logits equal over 2: nll 2 ln 2 each, reference nll the same, so −(2/β) log σ(0) = (2/β) ln 2.

    Its gradient is −1 on the answer's nll and +1 on the alternate's: the first rises, the second falls.
    """
    logits = {name: torch.zeros(2, 2, requires_grad=True) for name in ("answer", "alternate")}
    reference_B = torch.full((1,), 2 * torch.log(torch.tensor(2.0)).item())
    scores = {
        name: AnswerScores.of(logit_NV, [[0, 1]], reference_nll_B=reference_B) for name, logit_NV in logits.items()
    }
    loss = AltpoConfig(beta=0.5)(scores)
    loss.backward()
    assert loss.item() == pytest.approx(4 * torch.log(torch.tensor(2.0)).item())
    nll_gradient = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])  # softmax minus one-hot
    torch.testing.assert_close(logits["answer"].grad, -nll_gradient)
    torch.testing.assert_close(logits["alternate"].grad, nll_gradient)
