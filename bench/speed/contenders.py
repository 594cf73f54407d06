"""Whose steps are timed: GRUN's engine, the same edits as an ordinary tool applies them, and fine-tuning."""

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.config import RunConfig
from grun.adapters.grun import GrunConfig
from grun.data import Batch, Example, collate
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.lm.layers import Layer
from grun.lm.patching import decoder_layers, output_tensor, with_output_tensor
from grun.lm.prompted import read_prompts
from grun.lm.reading import model_inputs
from grun.model.forward import Adapted, AnswerOutput, CausalLM, Generated, PlainModel, in_groups, mixed_precision
from pyvene_custom.editing import Editing

EDITED = ("pyvene", "hooks", "engine")
"""GRUN three ways: the whole model through pyvene, through bare forward hooks, and the engine."""
FINE_TUNED = ("lora", "full")


def edited(
    name: str, config: RunConfig, model: CausalLM, layers: tuple[int, ...], forget_loss: str, caching: PrefixCaching
) -> EditedModel:
    """One of EDITED on a model.

    config: a GRUN run. layers: the edited ones. caching: where the engine keeps its prefixes.
    """
    assert isinstance(config.adapter, GrunConfig)
    adapted = dataclasses.replace(config.adapter, layers=layers).attach(model, config.seed)
    if name != "engine":
        return WholeModel(adapted, hooks=name == "hooks", reads_reference=forget_loss == "npo")
    adapted.use_prefix_caching(caching)
    return adapted


class WholeModel(EditedModel):
    """GRUN's edits as an ordinary tool applies them: the whole model on every token of one padded batch, the LM head
    everywhere and, where the loss has a reference, the untouched model on the forget half in every step.
    """

    def __init__(self, edited: EditedModel, *, hooks: bool, reads_reference: bool) -> None:
        """hooks: through torch's forward hooks; else through pyvene."""
        edits = {layer: edited.edits[str(layer)] for layer in edited.layers}
        super().__init__(edited.model, edits, edited.where, edited.gate_layer)
        self.hooks, self.reads_reference = hooks, reads_reference

    def answer_output(self, examples: Sequence[Example], hidden_layer: Layer | None = None) -> AnswerOutput:
        """Forget examples are the first half."""
        assert hidden_layer is None, "not timed"
        if self.reads_reference:
            forget = collate(examples[: len(examples) // 2], device=self.device)
            with torch.no_grad():
                self.model(**model_inputs(forget))
        batch = collate(examples, device=self.device)
        editing = self.editing([example.prompt_ids for example in examples], batch.edited_position_B)
        outputs = through_hooks(self.model, batch, editing) if self.hooks else self.through_pyvene(batch, editing)
        return AnswerOutput(
            examples=examples, logits_NV=outputs.logits[batch.predicts_answer_BL], gate_logit_BK=editing.gate_logit_BK()
        )


class Plainly(PlainModel):
    """A fine-tuned model as an ordinary tool runs it: padded batches, a pass an answer, and answers token by token."""

    def answer_output(self, examples: Sequence[Example], hidden_layer: Layer | None = None) -> AnswerOutput:
        """In groups of like length."""
        assert hidden_layer is None, "not timed"
        return in_groups(examples, len, self.device, partial(self.one_pass, hidden_layer=None))

    def generate(
        self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, drafts: Sequence[Sequence[int]] = ()
    ) -> Generated:
        """Drafts are not looked at."""
        with mixed_precision(self.device):
            return Generated(answers=read_prompts(self.model, prompts).answers(max_new_tokens))


def padded(adapted: Adapted) -> Plainly:
    """The same model, its batches padded."""
    assert isinstance(adapted, PlainModel), "nothing else is fine-tuned"
    return Plainly(adapted.model)


def through_hooks(model: CausalLM, batch: Batch, editing: Editing) -> Any:
    """The whole model's own output on a batch, edited by torch's own forward hooks: the least that an ordinary tool
    would do. `editing` keeps what the gates said."""

    def edit_output(layer: int, module: nn.Module, args: Any, output: Any) -> Any:
        return with_output_tensor(output, editing(layer, output_tensor(output)))

    layers = decoder_layers(model)
    handles = [layers[layer].register_forward_hook(partial(edit_output, layer)) for layer in editing.layers]
    try:
        return model(**model_inputs(batch))
    finally:
        for handle in handles:
            handle.remove()


def best_ratio(
    model: CausalLM, forget: Sequence[Example], retain: Sequence[Example], *, first_layer: int, reads_reference: bool
) -> float:
    """How many times cheaper than bare hooks the engine's step can be, counting multiplications on real tokens.

    Hooks: all tokens up through every layer and the head, and back down to the first edit; a reference reads the
    forget half once more. The engine: tokens from the edited position on, through the layers above the first edit and
    the head, up and down. Attention's own products, a few per cent here, are left out.
    """
    layers = decoder_layers(model)
    per_layer = sum(weight.numel() for weight in layers[0].parameters() if weight.ndim > 1)
    head = model.get_output_embeddings().weight.numel()
    whole = len(layers) * per_layer + head
    later = (len(layers) - 1 - first_layer) * per_layer + head
    tokens = [statistics.mean(map(len, examples)) for examples in (forget, retain)]
    answer_tokens = [statistics.mean(len(each.answer_ids) for each in examples) for examples in (forget, retain)]
    hooks = sum(tokens) * (whole + later) + (tokens[0] * whole if reads_reference else 0)
    return hooks / (2 * sum(answer_tokens) * later)
