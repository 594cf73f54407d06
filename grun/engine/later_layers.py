"""The frozen model from its first edited layer on: what training and evaluation run instead of the whole of it.

Exact, not approximate: see `grun.engine.prefix_cache`. The model's own layers, masks and head do the work; the layers
below the first edit are skipped, and the edits are put in at the position that stands first.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grun.data import Example
from grun.engine.prefix_batch import PrefixBatch, assemble
from grun.engine.prefix_cache import PrefixCache
from grun.lm.greedy import decode
from grun.lm.kv_cache import aligned, fill_below, filled_cache
from grun.lm.patching import decoder_layers, output_tensor, patched, with_output_tensor
from grun.lm.reading import eos_ids, head_at
from grun.model.forward import AnswerOutput, Generated
from pyvene_custom.editing import Editing


class Prompts(Protocol):
    """Where prompts' keys and values are kept whole: a prefix cache, or what read them just now."""

    first_layer: int

    def kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """See `PrefixCache`."""

    def prefix_kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """See `PrefixCache`."""

    def hidden_at_edit(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """See `PrefixCache`."""


def answer_output(
    model: Any, editing: Editing, caches: Sequence[PrefixCache], examples: Sequence[Example]
) -> AnswerOutput:
    """Answer logits, gates, and the output of the layer that the pass keeps, the first edited one or a later one.

    Each example is in one of the caches, which share their first layer.
    """
    first_layer = caches[0].first_layer
    homes = [next(cache for cache in caches if example in cache) for example in examples]
    batch = assemble(
        examples,
        [cache.prefix_kv(example.prompt_ids) for cache, example in zip(homes, examples, strict=True)],
        [cache.hidden(example) for cache, example in zip(homes, examples, strict=True)],
        model.device,
    )
    logits_NV, head_input_ND, _ = _run(model, editing, first_layer, batch)
    return AnswerOutput(
        examples=examples,
        logits_NV=logits_NV,
        head_input_ND=head_input_ND,
        hidden_ND=None if editing.kept_BLD is None else editing.kept_BLD[batch.is_token_BT],
        gate_logit_BK=editing.gate_logit_BK(),
    )


@torch.no_grad()
def gate_logits(model: Any, editing: Editing, cache: PrefixCache, prompts: Sequence[tuple[int, ...]]) -> Tensor | None:
    """Gates of some prompts, [B, K], from their last tokens alone; None where the edits have none."""
    batch = _prompt_batch(cache, prompts, model.device)
    _run(model, editing, cache.first_layer, batch)
    return editing.gate_logit_BK()


@torch.no_grad()
def generate(
    model: Any,
    editing: Editing,
    cache: Prompts,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    drafts: Sequence[Sequence[int]],
) -> Generated:
    """Greedy answers. cache: of the prompts as a whole; a `PrefixCache` was built with `whole_prompts`."""
    batch = _prompt_batch(cache, prompts, model.device)
    logits_BV, _, kv = _run(model, editing, cache.first_layer, batch)
    # Below the edit nothing ran; decoding needs the last token's keys and values there too.
    below = [cache.kv(prompt)[:, :, : cache.first_layer + 1] for prompt in prompts]
    fill_below(kv, aligned(below).to(model.device))
    with editing_on(model, editing, editing.layers_while_decoding()):
        answers = decode(
            model,
            kv,
            logits_BV,
            batch.attention_mask_BS,
            batch.position_ids_BT[:, 0] + 1,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids(model),
            drafts=drafts,
            keep=editing.keep,
        )
    return Generated(answers=answers, gate_logit_BK=editing.gate_logit_BK())


def editing_on(model: Any, editing: Editing, layers: Iterable[int]) -> AbstractContextManager[None]:
    """Inside, the output of these layers is edited."""
    return patched(_edited(decoder_layers(model), editing, layers))


def _prompt_batch(cache: Prompts, prompts: Sequence[tuple[int, ...]], device: torch.device | str) -> PrefixBatch:
    """The prompts' last tokens alone: T = 1."""
    return assemble(
        [Example(prompt_ids=prompt, answer_ids=(0,)) for prompt in prompts],
        [cache.prefix_kv(prompt) for prompt in prompts],
        [cache.hidden_at_edit(prompt) for prompt in prompts],
        device,
    )


def _run(model: Any, editing: Editing, first_layer: int, batch: PrefixBatch) -> tuple[Tensor, Tensor, Any]:
    """Logits [tokens, V] at every token of the batch, one after another, what the head made them of, and the model's
    cache of keys and values."""
    kv = filled_cache(batch.kv_BP2MHd, first_kept=first_layer + 1)
    replacements = _replacements(decoder_layers(model), editing, first_layer, batch.hidden_BTD)
    with patched(replacements), head_at(model, batch.is_token_BT) as head_inputs:
        outputs = model(
            inputs_embeds=batch.hidden_BTD,  # only their shape is used: the first layer's replacement ignores them
            attention_mask=batch.attention_mask_BS,
            position_ids=batch.position_ids_BT,
            past_key_values=kv,
            use_cache=True,
        )
    return outputs.logits[0], head_inputs[0], kv


def _replacements(
    layers: nn.ModuleList, editing: Editing, first_layer: int, hidden_BTD: Tensor
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """What the layers do instead: pass on, hand out the cached output, or edit their own."""

    def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    def hand_out(*args: Any, **kwargs: Any) -> Tensor:
        return editing(first_layer, hidden_BTD)

    for layer in layers[:first_layer]:
        yield layer, pass_on
    yield layers[first_layer], hand_out
    yield from _edited(layers, editing, filter(editing.concerns, range(first_layer + 1, len(layers))))


def _edited(
    layers: nn.ModuleList, editing: Editing, indices: Iterable[int]
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """What these layers do instead: as before, and their output is edited."""
    for index in indices:

        def run_and_edit(*args: Any, _run: Any = layers[index].forward, _layer: int = index, **kwargs: Any) -> Any:
            output = _run(*args, **kwargs)
            return with_output_tensor(output, editing(_layer, output_tensor(output)))

        yield layers[index], run_and_edit
