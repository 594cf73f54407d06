"""Answers to a prompt that is read once: how likely each of them is, where nothing is to be trained.

Shapes: P prompts, B answers, T tokens of the longest answer but its last, N answer tokens in all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.data import Example
from grun.model.kv_cache import rows_of
from grun.model.prompted import Prompted, read_prompts
from grun.model.reading import head_at

Grouping = Callable[[Sequence[int]], Sequence[Sequence[int]]]
"""Lengths of some answers → groups of them that are read together."""


def all_together(lengths: Sequence[int]) -> Sequence[Sequence[int]]:
    """The grouping that is none."""
    return [range(len(lengths))]


def unique_prompts(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Each once, in the order in which they come."""
    return list(dict.fromkeys(example.prompt_ids for example in examples))


def is_worth_it(examples: Sequence[Example]) -> bool:
    """Whether some have one prompt, and nothing is to be trained."""
    return not torch.is_grad_enabled() and len(unique_prompts(examples)) < len(examples)


@torch.no_grad()
def read_side_by_side(
    model: Any,
    examples: Sequence[Example],
    grouping: Grouping = all_together,
    keep: Callable[[Tensor], None] = lambda row_B: None,
) -> tuple[Tensor, Tensor]:
    """Logits [N, V] that predict the answers' tokens, and what the LM head made them of, [N, D].

    As one pass over prompts with their answers says, to float rounding; prompts are read once each, then the answers
    with what the model keeps of them. keep: called with the rows of the prompts that a group of answers goes on from.
    """
    row = {prompt: row for row, prompt in enumerate(unique_prompts(examples))}
    read = read_prompts(model, list(row))
    row_B = torch.tensor([row[example.prompt_ids] for example in examples], device=model.device)
    sizes = [len(example.answer_ids) for example in examples]
    first_B = torch.tensor([0, *sizes[:-1]], device=model.device).cumsum(dim=0)
    logits_NV = read.logits_BV.new_empty(sum(sizes), read.logits_BV.shape[1])
    head_input_ND = read.head_input_BD.new_empty(sum(sizes), read.head_input_BD.shape[1])
    logits_NV.index_copy_(0, first_B, read.logits_BV[row_B])
    head_input_ND.index_copy_(0, first_B, read.head_input_BD[row_B])
    longer = [at for at, size in enumerate(sizes) if size > 1]
    for group in grouping([sizes[at] for at in longer]) if longer else ():
        members = [longer[member] for member in group]
        keep(row_B[members])
        logits, head_input = _read_on(read, row_B[members], [examples[at].answer_ids[:-1] for at in members])
        later = torch.cat([torch.arange(1, sizes[at], device=model.device) + first_B[at] for at in members])
        logits_NV.index_copy_(0, later, logits)
        head_input_ND.index_copy_(0, later, head_input)
    return logits_NV, head_input_ND


def _read_on(read: Prompted, row_B: Tensor, answers: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """What the answers' tokens predict next, each behind its own prompt: logits and the head's inputs, in turn."""
    answer_BT = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True).to(row_B.device)
    column_T = torch.arange(answer_BT.shape[1], device=row_B.device)
    is_token_BT = column_T < torch.tensor([len(answer) for answer in answers], device=row_B.device)[:, None]
    mask_BL = read.attention_mask_BL[row_B]
    with head_at(read.model, is_token_BT) as head_inputs:
        outputs = read.model(
            input_ids=answer_BT,
            attention_mask=torch.cat([mask_BL, is_token_BT.to(mask_BL.dtype)], dim=1),
            position_ids=read.next_position_B[row_B, None] + column_T,
            past_key_values=rows_of(read.cache, row_B),
            use_cache=True,
        )
    return outputs.logits[0], head_inputs[0]
