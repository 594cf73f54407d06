"""What is read off a causal LM's own forward pass, what goes into it, and the little that is changed in it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grun.data import Batch
from grun.lm.layers import Layer, layer_index
from grun.lm.patching import decoder_layers, output_tensor, patched


def model_inputs(batch: Batch) -> dict[str, Any]:
    """A batch as the arguments of a `transformers` forward."""
    return {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL, "use_cache": False}


@contextlib.contextmanager
def head_at(model: Any, positions_BL: Any, *, runs: bool = True) -> Iterator[list[Tensor]]:
    """Inside, the LM head sees only the positions that are true, or picked, so logits come out as [1, positions, V].

    Yields a list that gets what the head sees, [positions, D]; where it does not run, logits are [1, 0, V].

    Exact: the head treats every position alone. The model's own forward still does all that follows the head
    (Gemma's soft cap, say).
    """
    head = model.get_output_embeddings()
    forward = head.forward
    seen: list[Tensor] = []

    def select(hidden_BLD: Tensor) -> Tensor:
        seen.append(hidden_BLD[positions_BL])
        return forward(seen[-1][None] if runs else seen[-1][None, :0])

    with patched([(head, select)]):
        yield seen


@contextlib.contextmanager
def layer_output(model: Any, layer: int | None) -> Iterator[list[Tensor]]:
    """Yields a list that gets a decoder layer's own output, [B, L, D]; it stays empty where layer is None."""
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    module = decoder_layers(model)[layer]
    run = module.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        output = run(*args, **kwargs)
        seen.append(output_tensor(output))
        return output

    with patched([(module, record)]):
        yield seen


def hidden_layer_index(model: Any, layer: Layer) -> int:
    """Index of the layer whose output a loss looks at. Raises UserError where it is beyond the model."""
    return layer_index(layer, len(decoder_layers(model)), "forget_loss.layer")


def logits_of_head_input(model: Any, head_input_ND: Tensor) -> Tensor:
    """Logits [N, V] by the model's own head and whatever follows it (Gemma's soft cap, say)."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    hidden = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=head_input_ND[None])
    with patched([(model.get_decoder(), lambda *args, **kwargs: hidden)]):
        return model(inputs_embeds=head_input_ND[None], use_cache=False).logits.squeeze(0)


def last_position(mask_BL: Tensor) -> Tensor:
    """True in the last column alone: [B, L]."""
    last_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
    last_BL[:, -1] = True
    return last_BL


def eos_ids(model: Any) -> list[int]:
    """Every token id that ends an answer."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids)


def left_padding(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Columns before each prompt where their last tokens stand in the last column."""
    longest = max(map(len, prompts))
    return [longest - len(prompt) for prompt in prompts]


def prompt_inputs(prompts: Sequence[Sequence[int]], model: Any) -> dict[str, Tensor]:
    """Prompts as the model's arguments: their last tokens stand in the last column."""
    read, pad = [torch.tensor(prompt) for prompt in prompts], model.generation_config.pad_token_id
    input_ids_BL = pad_sequence(read, batch_first=True, padding_value=pad or 0, padding_side="left")
    attention_mask_BL = pad_sequence([torch.ones_like(ids) for ids in read], batch_first=True, padding_side="left")
    return {"input_ids": input_ids_BL.to(model.device), "attention_mask": attention_mask_BL.to(model.device)}
