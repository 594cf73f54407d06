"""A frozen causal LM that is changed from a prompt's first token on: by how much is known before, from a pass without.

There is no frozen prefix to keep, and nothing of an engine: the gates read the untouched model, then the whole of it
runs inside what the adapter makes of it. Where every gate is shut that is the model itself, bit for bit.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from grun.data import Example
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.lm.layers import Layer
from grun.lm.prompted import read_from, read_prompts
from grun.lm.reading import left_padding
from grun.lm.side_by_side import is_worth_it, read_side_by_side, unique_prompts
from grun.model.forward import AnswerOutput, Generated, PlainModel, in_groups, mixed_precision, pass_tokens

Prompts = Sequence[tuple[int, ...]]


class SwitchedModel(EditedModel):
    """What is done to it is under layer 0 of its edits; its gates read `gate_layer`, once a prompt."""

    @abstractmethod
    def changed(
        self, prompts: Prompts, weight_BK: Tensor, padding: Sequence[int]
    ) -> AbstractContextManager[Callable[[Tensor], None]]:
        """Inside, the model is as the adapter makes it, as far as each prompt's gates are open.

        padding: columns before each prompt's first token. Yields what goes on with some of the prompts alone.
        """

    def use_prefix_caching(self, caching: PrefixCaching) -> None:
        """There is no frozen prefix."""

    def take_hold(self) -> None:
        """pyvene has no part in it."""

    def answer_output(self, examples: Sequence[Example], hidden_layer: Layer | None = None) -> AnswerOutput:
        """See `grun.model.forward.Adapted`. Where nothing is trained, a prompt of several answers is read once."""
        if hidden_layer is not None or not is_worth_it(examples):
            return super().answer_output(examples, hidden_layer)
        prompts = unique_prompts(examples)
        weight_BK, logit_BK = self._read(prompts)
        with self.changed(prompts, weight_BK, left_padding(prompts)) as keep, mixed_precision(self.device):
            read = read_side_by_side(self.model, examples, keep=keep)
        return AnswerOutput(
            examples=examples,
            logits_NV=read.logits_NV,
            head_input_ND=read.head_input_ND,
            gate_logit_BK=logit_BK[read.rows],
        )

    def _packed_output(self, hidden_layer: int | None, examples: Sequence[Example]) -> AnswerOutput:
        """What the adapter makes of a model differs from prompt to prompt: in sequences."""
        if not torch.is_grad_enabled():
            weight_BK, logit_BK = self._read([example.prompt_ids for example in examples])
            if not weight_BK.any():
                return replace(PlainModel(self.model).answer_output(examples, hidden_layer), gate_logit_BK=logit_BK)
        return in_groups(examples, len, self.device, partial(self._plain_output, hidden_layer))

    def _plain_output(self, hidden_layer: int | None, examples: Sequence[Example]) -> AnswerOutput:
        prompts = [example.prompt_ids for example in examples]
        weight_BK, logit_BK = self._read(prompts)
        with self.changed(prompts, weight_BK, [0] * len(prompts)):
            output = PlainModel(self.model).one_pass(examples, hidden_layer)
        return replace(output, gate_logit_BK=logit_BK)

    @torch.no_grad()
    def generate(self, prompts: Prompts, max_new_tokens: int, drafts: Sequence[Sequence[int]] = ()) -> Generated:
        """See `grun.model.forward.Adapted`. The gates are read once, and hold for the whole answer. Those that are
        shut go on from the pass that was read for it; only open ones are read again, inside."""
        read, (ends, means) = None, self._gates_read()
        if self._has_read(prompts):
            weight_BK, logit_BK = self._read(prompts)
        else:
            with mixed_precision(self.device):
                read = read_from(self._beginning(prompts), self.model, prompts, ends, means=means)
            weight_BK, logit_BK = self._edits()[0].read(read.hidden_BD[0].float())
        is_open_B = weight_BK.any(dim=1)
        shut, opened = (~is_open_B).nonzero()[:, 0].tolist(), is_open_B.nonzero()[:, 0].tolist()
        answers: dict[int, list[int]] = {}
        if shut:
            own = [prompts[row] for row in shut]
            with mixed_precision(self.device):
                begun = read_prompts(self.model, own, pass_tokens=pass_tokens(self.device)) if read is None else read
                if len(begun.next_position_B) > len(shut):
                    begun = begun.only(torch.tensor(shut, device=self.device))
                answers |= zip(shut, begun.answers(max_new_tokens, _of(drafts, shut)), strict=True)
        if opened:
            own = [prompts[row] for row in opened]
            with self.changed(own, weight_BK[opened], left_padding(own)) as keep, mixed_precision(self.device):
                begun = read_prompts(self.model, own)
                answers |= zip(opened, begun.answers(max_new_tokens, _of(drafts, opened), keep), strict=True)
        return Generated(answers=[answers[row] for row in range(len(prompts))], gate_logit_BK=logit_BK)

    def _gate_hidden(self, prompts: Prompts) -> Tensor:
        with mixed_precision(self.device):  # as in the pass that answers go on from
            return super()._gate_hidden(prompts)

    def _read(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        weight_BK, logit_BK = self._edits()[0].read(self._gate_hidden(prompts))
        return weight_BK, logit_BK


def _of(drafts: Sequence[Sequence[int]], rows: Sequence[int]) -> Sequence[Sequence[int]]:
    """Those of some prompts; none where there are none."""
    return [drafts[row] for row in rows] if drafts else ()
