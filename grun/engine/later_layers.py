"""The frozen model from its first edited layer on: what training and evaluation run instead of the whole of it.

Exact, not approximate: see `grun.engine.prefix_cache`. The model's own layers, masks and head do the work; the layers
below the first edit are skipped, and the edits are put in at the position that stands first.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grun.data import Example
from grun.engine.prefix_batch import PrefixBatch, assemble
from grun.engine.prefix_cache import PrefixCache
from grun.lm.kv_cache import add_columns, aligned, fill_below, take_last
from grun.lm.patching import decoder_layers, patched
from grun.lm.prompted import Prompted
from grun.lm.reading import head_at
from grun.model.behind import pack_behind
from grun.model.changed import LayerChange, changed, changed_layers, pass_on
from grun.model.forward import AnswerOutput, Generated, pass_tokens
from grun.model.packed import Packed, can_read_packed
from pyvene_custom.editing import Editing


def answer_output(
    model: Any, editing: Editing, caches: Sequence[PrefixCache], examples: Sequence[Example]
) -> AnswerOutput:
    """Answer logits, gates, and the output of the layer that the pass keeps, the first edited one or a later one.

    Each example is in one of the caches, which share their first layer. In one row where the model can be read so.
    """
    first_layer = caches[0].first_layer
    homes = [next(cache for cache in caches if example in cache) for example in examples]
    kv = [cache.prefix_kv(example.prompt_ids) for cache, example in zip(homes, examples, strict=True)]
    hidden = [cache.hidden(example) for cache, example in zip(homes, examples, strict=True)]
    batch: PrefixBatch | Packed
    if can_read_packed(model):
        batch = pack_behind(
            examples, kv, hidden, model.device, first_layer=first_layer + 1, pass_tokens=pass_tokens(model.device)
        )
        change, is_token_BA = batch.shown_to(editing), batch.is_token_BA
    else:
        batch = assemble(examples, kv, hidden, model.device, first_kept=first_layer + 1)
        change, is_token_BA = editing, batch.predicts_answer_BL
    logits_NV, head_input_ND = _run(model, editing, first_layer, batch, change)
    return AnswerOutput(
        examples=examples,
        logits_NV=logits_NV,
        head_input_ND=head_input_ND,
        hidden_ND=None if editing.kept_BLD is None else editing.kept_BLD[is_token_BA],
        gate_logit_BK=editing.gate_logit_BK(),
    )


@torch.no_grad()
def gate_logits(model: Any, editing: Editing, cache: PrefixCache, prompts: Sequence[tuple[int, ...]]) -> Tensor | None:
    """Gates of some prompts, [B, K], from their last tokens alone; None where the edits have none."""
    batch = _prompt_batch(cache, prompts, model.device)
    _run(model, editing, cache.first_layer, batch)
    return editing.gate_logit_BK()


@torch.no_grad()
def read_prompts(model: Any, editing: Editing, cache: PrefixCache, prompts: Sequence[tuple[int, ...]]) -> Prompted:
    """Prompts with their edits, ready to be answered. cache: built with `whole_prompts`."""
    batch = _prompt_batch(cache, prompts, model.device)
    logits_BV, head_input_BD = _run(model, editing, cache.first_layer, batch)
    # Below the edit nothing ran; decoding needs the last token's keys and values there too.
    below = [cache.kv(prompt)[:, :, : cache.first_layer + 1] for prompt in prompts]
    fill_below(batch.cache, aligned(below).to(model.device))
    return Prompted(
        model=model,
        cache=batch.cache,
        logits_BV=logits_BV,
        head_input_BD=head_input_BD,
        attention_mask_BL=batch.attention_mask_BS,
        next_position_B=batch.position_ids_BT[:, 0] + 1,
        hidden_BD=(),
    )


@torch.no_grad()
def edit_ends(read: Prompted, editing: Editing, first_layer: int) -> Prompted | None:
    """Prompts that the untouched model has read, their last tokens once more with edits; None where not all its layers
    keep keys and values. Takes `read` over, whose first hidden states are the first edited layer's."""
    last = take_last(read.cache, len(decoder_layers(read.model)))
    if last is None:
        return None
    batch = PrefixBatch(
        cache=read.cache,
        hidden_BTD=read.hidden_BD[0][:, None],
        attention_mask_BS=read.attention_mask_BL,
        position_ids_BT=read.next_position_B[:, None] - 1,
        predicts_answer_BL=torch.ones_like(read.next_position_B[:, None], dtype=torch.bool),
    )
    logits_BV, head_input_BD = _run(read.model, editing, first_layer, batch)
    add_columns(read.cache, last[: first_layer + 1])
    return replace(read, logits_BV=logits_BV, head_input_BD=head_input_BD)


def answers(editing: Editing, read: Prompted, max_new_tokens: int, drafts: Sequence[Sequence[int]]) -> Generated:
    """Greedy answers to prompts that were read with these edits."""
    with changed_layers(read.model, editing, editing.layers_while_decoding()):
        found = read.answers(max_new_tokens, drafts, editing.keep)
    return Generated(answers=found, gate_logit_BK=editing.gate_logit_BK())


def _prompt_batch(cache: PrefixCache, prompts: Sequence[tuple[int, ...]], device: torch.device | str) -> PrefixBatch:
    """The prompts' last tokens alone: T = 1."""
    return assemble(
        [Example(prompt_ids=prompt, answer_ids=(0,)) for prompt in prompts],
        [cache.prefix_kv(prompt) for prompt in prompts],
        [cache.hidden_at_edit(prompt) for prompt in prompts],
        device,
        first_kept=cache.first_layer + 1,
    )


def _run(
    model: Any, editing: Editing, first_layer: int, batch: PrefixBatch | Packed, change: LayerChange | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [tokens, V] at every token of the batch, one after another, and what the head made them of; the batch's
    cache goes on with them. change: `editing` as it is shown the batch; None: as it is."""
    layers, inputs, shown = decoder_layers(model), batch.inputs(), editing if change is None else change

    def hand_out(*args: Any, **kwargs: Any) -> Tensor:
        return shown(first_layer, inputs["inputs_embeds"])  # of which the model itself uses the shape alone

    replacements = [
        *((layer, pass_on) for layer in layers[:first_layer]),
        (layers[first_layer], hand_out),
        *changed(layers, shown, filter(editing.concerns, range(first_layer + 1, len(layers)))),
    ]
    with patched(replacements), head_at(model, batch.predicts_answer_BL) as head_inputs:
        return model(**inputs).logits.squeeze(0), head_inputs[0]
