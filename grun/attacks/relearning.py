"""An attacker who relearns the forget set, after the unlearning or meanwhile, so that what is trained holds.

The latter is first-order adversarial training, as tamper-resistant safeguards have it (arXiv 2408.00761): every step's
losses count on the model as it is, and again on a copy whose weights the attacker has moved.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from grun.data import Example
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted
from grun.model.step import adamw, take_step


@dataclass(frozen=True, kw_only=True)
class AgainstRelearningConfig:
    """How the attacker goes about it. What it costs: the copy, AdamW's moments of it, and passes without a cache."""

    weight: Annotated[float, Gt(0)] = 1.0
    """Weight of the losses on the attacked copy, beside those on the model as it is."""
    items: Annotated[int, Ge(1)] = 10
    """Forget items that are relearned, drawn each time the attacker begins anew; all, where there are fewer."""
    steps: Annotated[int, Ge(1)] = 10
    """Steps on these, one a step of the training, after which the attacker begins anew."""
    learning_rates: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] | None = None
    """AdamW's, one of them drawn each time. None: model.fine_tuning's and a tenth of it."""


class Attacker:
    """A copy of the frozen model under the very edits that are being trained."""

    def __init__(
        self,
        adapted: EditedModel,
        config: AgainstRelearningConfig,
        forget: Sequence[Example],
        *,
        seed: int,
        steps_per_epoch: int,
    ) -> None:
        """forget: what is relearned is drawn from. `cycle` steps, whole epochs, after it a training cut off goes on as
        if it had not been: then the attacker begins anew."""
        self.config, self.forget, self.seed = config, forget, seed
        self.cycle = steps_per_epoch * math.ceil(config.steps / steps_per_epoch)
        self._untouched = adapted.model
        self.adapted = adapted.afresh(copy.deepcopy(adapted.model))
        self._parameters = list(self.adapted.model.parameters())

    def step(self, number: int) -> EditedModel:
        """The model after the attacker's step beside the training's, which is counted from 1."""
        if (number - 1) % self.cycle % self.config.steps == 0:
            self._begin(random.Random(f"{self.seed}/{number}"))
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        relearn(self.adapted, self._some, self._optimizer)
        for parameter in self._parameters:
            parameter.requires_grad_(False).grad = None
        return self.adapted

    def _begin(self, draw: random.Random) -> None:
        with torch.no_grad():
            for parameter, untouched in zip(self._parameters, self._untouched.parameters(), strict=True):
                parameter.copy_(untouched)
        assert self.config.learning_rates is not None, "`resolved` fills them in"
        self._optimizer = adamw(self._parameters, learning_rate=draw.choice(self.config.learning_rates))
        self._some = draw.sample(self.forget, min(self.config.items, len(self.forget)))


def relearn(adapted: Adapted, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> None:
    """One step on the mean nll of all answer tokens, of what the optimizer holds."""

    def backward() -> Tensor:
        loss = adapted.answer_output(examples).scores.nll_N.mean()
        loss.backward()
        return loss.detach()[None]

    take_step(optimizer, backward, learning_rate=optimizer.defaults["lr"])
