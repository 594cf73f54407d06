"""Prompts that a model has read, and what goes on from there: answers that are given, and greedy ones.

Shapes: B sequences, L columns of their cache, T tokens of the longest that is read now, N tokens of all of them.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.data import num_shared
from grun.lm.greedy import decode
from grun.lm.kv_cache import keep_rows, move_right, new_cache, rows_of
from grun.lm.reading import eos_ids, head_at, last_position, layer_output, logits_of_head_input, prompt_inputs


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """A model after its pass over a batch of beginnings, whose last tokens stand in the last column."""

    model: Any
    cache: Any
    """`transformers`' own, of their keys and values."""
    logits_BV: Tensor | None
    """What follows each one's last token; None: the LM head has not run."""
    head_input_BD: Tensor
    """What it makes that of."""
    attention_mask_BL: Tensor
    next_position_B: Tensor
    hidden_BD: Sequence[Tensor]
    """Outputs at the last tokens of the layers that were asked for."""

    def answers(
        self,
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]] = (),
        keep: Callable[[Tensor], None] = lambda row_B: None,
    ) -> list[list[int]]:
        """Greedy answers as token ids, EOS left out; see `decode`. To be asked once: the cache goes on with them."""
        return decode(
            self.model,
            self.cache,
            self.first_logits(),
            self.attention_mask_BL,
            self.next_position_B,
            max_new_tokens=max_new_tokens,
            eos_ids=set(eos_ids(self.model)),
            drafts=drafts,
            keep=keep,
        )

    def only(self, row_B: Tensor) -> "Prompted":
        """These of them alone, in its own cache."""
        keep_rows(self.cache, row_B)
        return replace(
            self,
            logits_BV=None if self.logits_BV is None else self.logits_BV[row_B],
            head_input_BD=self.head_input_BD[row_B],
            attention_mask_BL=self.attention_mask_BL[row_B],
            next_position_B=self.next_position_B[row_B],
            hidden_BD=[hidden_BD[row_B] for hidden_BD in self.hidden_BD],
        )

    def first_logits(self) -> Tensor:
        """What follows each one's last token, [B, V], the LM head run now where it has not."""
        return logits_of_head_input(self.model, self.head_input_BD) if self.logits_BV is None else self.logits_BV

    def read_on(
        self,
        row_B: Tensor,
        tokens: Sequence[tuple[int, ...]],
        layers: Sequence[int] = (),
        *,
        ends_only: bool = False,
        head: bool = True,
    ) -> "ReadOn":
        """One pass over what goes on from these rows, each as often as it is named; this cache stays as it is.

        layers, head: as of `read_from`. ends_only: ask what follows the last token of each alone.
        """
        read_BT = pad_sequence([torch.tensor(own) for own in tokens], batch_first=True).to(row_B.device)
        size_B = torch.tensor([len(own) for own in tokens], device=row_B.device)
        column_T = torch.arange(read_BT.shape[1], device=row_B.device)
        is_token_BT, is_end_BT = column_T < size_B[:, None], column_T == size_B[:, None] - 1
        mask_BL = torch.cat([self.attention_mask_BL[row_B], is_token_BT.to(self.attention_mask_BL.dtype)], dim=1)
        cache = rows_of(self.cache, row_B)
        with ExitStack() as stack:
            head_inputs = stack.enter_context(head_at(self.model, is_end_BT if ends_only else is_token_BT, runs=head))
            seen = [stack.enter_context(layer_output(self.model, layer)) for layer in layers]
            outputs = self.model(
                input_ids=read_BT,
                attention_mask=mask_BL,
                position_ids=self.next_position_B[row_B, None] + column_T,
                past_key_values=cache,
                use_cache=True,
            )
        return ReadOn(
            model=self.model,
            cache=cache,
            logits_NV=outputs.logits[0] if head else None,
            head_input_ND=head_inputs[0],
            end_B=torch.arange(len(size_B), device=row_B.device) if ends_only else size_B.cumsum(dim=0) - 1,
            attention_mask_BL=mask_BL,
            next_position_B=self.next_position_B[row_B] + size_B,
            unread_B=len(column_T) - size_B,
            hidden_BD=[hidden_BTD[is_end_BT] for (hidden_BTD,) in seen],
        )


@dataclass(frozen=True, kw_only=True)
class ReadOn:
    """A model after its pass over what went on from there; padding is behind it."""

    model: Any
    cache: Any
    logits_NV: Tensor | None
    """What follows each token, sequence after sequence, or each end alone; None: the LM head has not run."""
    head_input_ND: Tensor
    """What it makes that of."""
    end_B: Tensor
    """Where among those the ends are."""
    attention_mask_BL: Tensor
    next_position_B: Tensor
    unread_B: Tensor
    """Columns of padding."""
    hidden_BD: Sequence[Tensor]
    """Outputs at the ends."""

    def prompted(self) -> Prompted:
        """To go on from the ends; moves the cache, so that they stand in the last column."""
        return Prompted(
            model=self.model,
            cache=self.cache,
            logits_BV=None if self.logits_NV is None else self.logits_NV[self.end_B],
            head_input_BD=self.head_input_ND[self.end_B],
            attention_mask_BL=move_right(self.cache, self.unread_B, self.attention_mask_BL),
            next_position_B=self.next_position_B,
            hidden_BD=self.hidden_BD,
        )


def read_prompts(
    model: Any, prompts: Sequence[tuple[int, ...]], layers: Sequence[int] = (), *, pass_tokens: float = math.inf
) -> Prompted:
    """Read some prompts. layers: see `read_from`. pass_tokens: see `beginning`."""
    return read_from(beginning(model, prompts, pass_tokens), model, prompts, layers)


def beginning(model: Any, prompts: Sequence[tuple[int, ...]], pass_tokens: float) -> Prompted | None:
    """How all prompts begin (a chat template's system text, say), read once; None where that is not worth a pass.

    pass_tokens: how many tokens not to be read are.
    """
    num_begun = min(num_shared(prompts), *(len(prompt) - 1 for prompt in prompts))
    is_worth_it = (len(prompts) - 1) * num_begun > pass_tokens
    return read_from(None, model, [prompts[0][:num_begun]]) if is_worth_it else None


def end_columns(begun: Prompted | None, prompts: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """Where the prompts' last tokens stand in the pass of `read_from`: [B]."""
    if begun is None:
        return torch.full((len(prompts),), max(map(len, prompts)) - 1, device=device)
    num_begun = begun.attention_mask_BL.shape[1]
    return torch.tensor([len(prompt) - 1 - num_begun for prompt in prompts], device=device)


@torch.no_grad()
def read_from(
    begun: Prompted | None,
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    layers: Sequence[int] = (),
    *,
    means: Sequence[int] = (),
    head: bool = True,
) -> Prompted:
    """One pass over some prompts, without what they begin with. layers: whose outputs at the last token to keep, means:
    behind them, whose mean over a prompt if nothing is begun. head: whether it runs, too; else when it is asked."""
    if begun is not None:
        row_B = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
        rest = [prompt[begun.attention_mask_BL.shape[1] :] for prompt in prompts]
        return begun.read_on(row_B, rest, layers, ends_only=True, head=head).prompted()
    inputs = prompt_inputs(prompts, model)
    mask_BL = inputs["attention_mask"]
    position_ids_BL, share_BL1 = (mask_BL.cumsum(dim=1) - 1).clamp(min=0), (mask_BL / mask_BL.sum(1, True))[..., None]
    cache = new_cache()
    with ExitStack() as stack:
        head_inputs = stack.enter_context(head_at(model, last_position(mask_BL), runs=head))
        seen = [stack.enter_context(layer_output(model, layer)) for layer in layers]
        averaged = [stack.enter_context(layer_output(model, layer)) for layer in means]
        outputs = model(**inputs, position_ids=position_ids_BL, past_key_values=cache, use_cache=True)
    return Prompted(
        model=model,
        cache=cache,
        logits_BV=outputs.logits[0] if head else None,
        head_input_BD=head_inputs[0],
        attention_mask_BL=mask_BL,
        next_position_B=position_ids_BL[:, -1] + 1,
        hidden_BD=[out_BLD[:, -1] for (out_BLD,) in seen] + [(out_BLD * share_BL1).sum(1) for (out_BLD,) in averaged],
    )
