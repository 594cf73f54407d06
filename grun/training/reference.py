"""What the untouched model says about a plan's examples: constants, computed once, before anything is trained.

The reference model of every loss that has one. It is never a second model: what is kept of it are numbers, and its head
where that is trained.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grun.data import Example, length_sorted_batches
from grun.lm.layers import Layer
from grun.lm.patching import patched
from grun.lm.reading import logits_of_head_input
from grun.losses import Need
from grun.model.forward import CausalLM, PlainModel, Tally
from grun.training.plan import Plan
from grun.training.recipe import Recipe


class Reference:
    """The untouched model on some examples."""

    @torch.no_grad()
    def __init__(
        self,
        model: CausalLM,
        examples: Sequence[Example],
        *,
        needs: Sequence[Need],
        hidden_layer: Layer | None,
        batch_size: int,
        progress: Tally,
        own_head: bool = False,
    ) -> None:
        """One forward pass over the examples.

        needs: what will be asked for. Logits are kept as the LM head's input, D numbers a token instead of V.
        hidden_layer: where `hidden` is taken. own_head: the model's is going to be trained, and is kept as it is.
        """
        self._model = model
        self.head: Any = copy.deepcopy(model.get_output_embeddings()).requires_grad_(False) if own_head else None
        """What the model's was, where it is kept."""
        self._nll: dict[Example, float] = {}
        self._head_input: dict[Example, Tensor] = {}
        self._hidden: dict[Example, Tensor] = {}
        unique = list(dict.fromkeys(examples))
        plain = PlainModel(model)
        for rows in length_sorted_batches([len(example) for example in unique], batch_size):
            batch = [unique[row] for row in rows]
            output = plain.answer_output(batch, hidden_layer if "hidden" in needs else None)
            lengths = [len(example.answer_ids) for example in batch]
            self._nll.update(zip(batch, output.scores.nll_B.tolist(), strict=True))
            if "logits" in needs and output.head_input_ND is not None:
                self._head_input.update(zip(batch, output.head_input_ND.cpu().split(lengths), strict=True))
            if output.hidden_ND is not None:
                self._hidden.update(zip(batch, output.hidden_ND.cpu().split(lengths), strict=True))
            progress(len(self._nll), len(unique))

    @torch.no_grad()
    def known(self, examples: Sequence[Example], need: Need) -> dict[str, Tensor]:
        """What a loss needs of some examples, under the name that `grun.losses.AnswerScores` has for it.

        For logits, the LM head must not have been trained since, or the reference has its own.
        """
        device = self._model.device
        if need == "nll":
            return {"reference_nll_B": torch.tensor([self._nll[example] for example in examples], device=device)}
        kept = self._head_input if need == "logits" else self._hidden
        kept_ND = torch.cat([kept[example] for example in examples]).to(device)
        if need == "hidden":
            return {"reference_hidden_ND": kept_ND}
        own = [] if self.head is None else [(self._model.get_output_embeddings(), self.head.forward)]
        with patched(own):
            return {"reference_logits_NV": logits_of_head_input(self._model, kept_ND)}


def reference_of(
    model: CausalLM, plan: Plan, recipe: Recipe, *, batch_size: int, progress: Callable[[str, int, int], None]
) -> Reference | None:
    """What the losses need of the untouched model on what the plan trains on; None where they need nothing.

    model: before an adapter is attached. batch_size: sequences a forward pass.
    """
    if not recipe.needs:
        return None
    parts = [part.examples for step in plan.steps for part in step]
    of_forget = [example for part in parts for some in part.forget.values() for example in some]
    of_retain = [example for part in parts for example in part.retain]
    return Reference(
        model,
        [*(of_forget if recipe.forget_loss.reference else ()), *(of_retain if recipe.retain_loss.reference else ())],
        needs=recipe.needs,
        hidden_layer=recipe.forget_loss.hidden_layer,
        batch_size=batch_size,
        progress=partial(progress, "reference model"),
    )
