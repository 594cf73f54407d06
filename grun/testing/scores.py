"""What training hands to a loss, made of free logits and hidden states instead of a model's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grun.losses import AnswerScores, ForgetScores, Need

NUM_TOKENS = (2, 3)
"""Of the two sequences."""
VOCABULARY = 5
HIDDEN_SIZE = 8


class FreeModel:
    """Two sequences under each of some names: what a model would say of them, with nothing behind it."""

    def __init__(self, names: Sequence[str], *, wrecked: bool = False) -> None:
        """What it says is what it holds most likely, as a model that knows its answers. wrecked: it is sure of itself
        beyond all measure, and mostly wrong."""
        draw, shape = torch.Generator().manual_seed(0), (sum(NUM_TOKENS), VOCABULARY)
        logits = {name: torch.randn(shape, generator=draw) for name in names}
        self.labels = {name: (-logit if wrecked else logit).argmax(dim=1) for name, logit in logits.items()}
        scale = 1e4 if wrecked else 1.0
        self.logits = {name: (scale * logit).requires_grad_(True) for name, logit in logits.items()}
        self.hidden = {name: torch.randn(shape[0], HIDDEN_SIZE, generator=draw).requires_grad_(True) for name in names}
        self.untouched_logits = {name: torch.randn(shape, generator=draw) for name in names}
        self.untouched_hidden = {name: torch.randn(shape[0], HIDDEN_SIZE, generator=draw) for name in names}

    def scores(self, *, reference: Need | None, hidden: bool, only: int | None = None) -> ForgetScores:
        """Just what a loss asks for. reference: its declaration. hidden: whether it looks at hidden states.

        only: of this sequence alone.
        """
        here = slice(0, sum(NUM_TOKENS)) if only is None else (slice(0, 2), slice(2, 5))[only]
        scores = {}
        for name in self.logits:
            answers, untouched_NV = self._answers(name, only), self.untouched_logits[name][here]
            known: dict[str, Tensor] = {"hidden_ND": self.hidden[name][here]} if hidden else {}
            if reference == "nll":
                known["reference_nll_B"] = AnswerScores.of(untouched_NV, answers).nll_B
            elif reference == "logits":
                known["reference_logits_NV"] = untouched_NV
            elif reference == "hidden":
                known["reference_hidden_ND"] = self.untouched_hidden[name][here]
            scores[name] = AnswerScores.of(self.logits[name][here], answers, **known)
        return scores

    def nll(self, name: str) -> Tensor:
        """Of each sequence: [2]."""
        return AnswerScores.of(self.logits[name], self._answers(name)).nll_B.detach()

    def _answers(self, name: str, only: int | None = None) -> list[list[int]]:
        answers = [part.tolist() for part in self.labels[name].split(NUM_TOKENS)]
        return answers if only is None else [answers[only]]

    def leaves(self, *, hidden: bool) -> list[Tensor]:
        """What a loss that looks at logits, or at hidden states, can move."""
        return list((self.hidden if hidden else self.logits).values())

    def step_down(self) -> None:
        """Move everything that has a gradient a little against it."""
        with torch.no_grad():
            for leaf in (*self.logits.values(), *self.hidden.values()):
                if leaf.grad is not None:
                    leaf -= 0.05 * leaf.grad / leaf.grad.norm()
