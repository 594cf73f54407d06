"""A causal LM as training and evaluation see it: answer logits, greedy answers, what is trainable."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grun.data import Batch, Example, collate, padding_groups
from grun.lm.begun import Begun, answers_from
from grun.lm.layers import Layer
from grun.lm.prompted import read_prompts
from grun.lm.reading import eos_ids, head_at, hidden_layer_index, layer_output, model_inputs
from grun.lm.side_by_side import is_worth_it, read_side_by_side
from grun.losses import AnswerScores
from grun.model.packed import Packed, can_read_packed, pack
from grun.prompts.template import PromptTemplate

CausalLM = Any
"""A `transformers` causal LM, or a PEFT model around one; neither is typed in a way that would help."""

Tally = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, kw_only=True)
class AnswerOutput:
    """What one pass says about some examples' answers, sequence after sequence."""

    examples: Sequence[Example]
    logits_NV: Tensor
    """Logits that predict each answer token."""
    head_input_ND: Tensor | None = None
    """What the LM head made the logits of."""
    hidden_ND: Tensor | None = None
    """Output of the layer that was asked for, edited where it is, at the positions the logits come from."""
    gate_logit_BK: Tensor | None = None
    """Gates before the sigmoid, where the adapter has gates."""
    begun: Mapping[tuple[int, ...], Begun] = field(default_factory=dict)
    """Prompt → the model's own answer as far as it is read, where it is kept, and not an example's."""

    @property
    def scores(self) -> AnswerScores:
        """How likely the answers are."""
        return AnswerScores.of(self.logits_NV, [example.answer_ids for example in self.examples])


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Greedy answers to a batch of prompts."""

    answers: list[list[int]]
    """Token ids, EOS left out."""
    gate_logit_BK: Tensor | None = None
    """Gates before the sigmoid, where the adapter has gates."""


GROUP_OVERHEAD_TOKENS = 128
"""What a forward and backward pass costs on a CPU before its first token, in tokens; elsewhere so much that none is
split."""
_GPUS = {"cuda"}
"""Kinds of devices that are computed on as on a GPU."""


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, the CPU is taken for a GPU: for planning, with tensors that hold nothing, where there is none."""
    _GPUS.add("cpu")
    try:
        yield
    finally:
        _GPUS.remove("cpu")


class Adapted(Protocol):
    """A model with an adapter on."""

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""

    def announce(self, examples: Sequence[Example], *, generate: bool, progress: Tally) -> None:
        """Announce examples that will be used many times; generate: that their prompts will be answered, too.

        Changes no result. progress: called where this takes time.
        """

    def fit(self, forget: Sequence[Example], retain: Sequence[Example]) -> None:
        """Settle, before anything is trained, what follows from the prompts in closed form."""

    def answer_output(self, examples: Sequence[Example], hidden_layer: Layer | None = None) -> AnswerOutput:
        """One pass over some examples, split into groups of like length where that saves padding.

        hidden_layer: also return this layer's output. Raises UserError where it is beyond the model, or constant.
        """

    def generate(
        self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, drafts: Sequence[Sequence[int]] = ()
    ) -> Generated:
        """Greedy answers to a batch of prompts.

        drafts: how each answer may well go, which changes the time and no answer; see `grun.lm.greedy.decode`.
        """

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves; every other weight is frozen."""

    def train(self, mode: bool) -> None:
        """Switch dropout and the like: True while training, False while evaluating."""


def mixed_precision(device: torch.device) -> torch.autocast:
    """Inside, on a GPU: matrix products in bfloat16, for models whose weights are float32 to be trained. Elsewhere no
    change."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type in _GPUS)


class PlainModel:
    """A model that needs no help in its forward pass: untouched, fully fine-tuned, or wrapped by PEFT."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """See `Adapted`."""
        return self.model.device

    def announce(self, examples: Sequence[Example], *, generate: bool, progress: Tally) -> None:
        """See `Adapted`. Nothing here stays the same from step to step."""

    def fit(self, forget: Sequence[Example], retain: Sequence[Example]) -> None:
        """See `Adapted`. There is nothing of the kind."""

    def answer_output(self, examples: Sequence[Example], hidden_layer: Layer | None = None) -> AnswerOutput:
        """See `Adapted`. Where nothing is trained, a prompt of several answers is read once."""
        at = None if hidden_layer is None else hidden_layer_index(self.model, hidden_layer)
        if at is None and is_worth_it(examples):
            with mixed_precision(self.device):
                read = read_side_by_side(self.model, examples, pass_tokens=pass_tokens(self.device), begin_answers=True)
            return AnswerOutput(
                examples=examples, logits_NV=read.logits_NV, head_input_ND=read.head_input_ND, begun=read.begun
            )
        if not can_read_packed(self.model):
            return in_groups(examples, len, self.device, partial(self.one_pass, hidden_layer=at))
        packed = pack(examples, device=self.device)
        with mixed_precision(self.device):
            return read_off(self.model, examples, packed, at, lambda: self.model(**packed.inputs()))

    def one_pass(self, examples: Sequence[Example], hidden_layer: int | None) -> AnswerOutput:
        """All the examples in one padded batch, in their order. hidden_layer: its index."""
        batch = collate(examples, device=self.device)
        with mixed_precision(self.device):
            return read_off(self.model, examples, batch, hidden_layer, lambda: self.model(**model_inputs(batch)))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, drafts: Sequence[Sequence[int]] = ()
    ) -> Generated:
        """See `Adapted`."""
        with mixed_precision(self.device):
            read = read_prompts(self.model, prompts, pass_tokens=pass_tokens(self.device))
            return Generated(answers=read.answers(max_new_tokens, drafts))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """See `Adapted`."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train(self, mode: bool) -> None:
        """See `Adapted`."""
        self.model.train(mode)

    def checkpoint_gradients(self) -> None:
        """Keep no activations between the layers' ends; compute them again on the way back."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def go_on(begun: Sequence[Begun], max_new_tokens: int, drafts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The whole of answers that are begun; see `answers_from`."""
    with mixed_precision(begun[0].model.device):
        return answers_from(begun, max_new_tokens, drafts)


def read_off(
    model: CausalLM,
    examples: Sequence[Example],
    batch: Batch | Packed,
    hidden_layer: int | None,
    run: Callable[[], Any],
) -> AnswerOutput:
    """What a pass of the model over the examples' batch says. run: the pass; it returns the model's own output."""
    with head_at(model, batch.predicts_answer_BL) as head_inputs, layer_output(model, hidden_layer) as hidden:
        outputs = run()
    return AnswerOutput(
        examples=examples,
        logits_NV=outputs.logits.squeeze(0),  # not [0], whose gradient would be copied into zeros
        head_input_ND=head_inputs[0],
        hidden_ND=hidden[0][batch.predicts_answer_BL] if hidden else None,
    )


def in_groups(
    examples: Sequence[Example],
    length: Callable[[Example], int],
    device: torch.device,
    run: Callable[[Sequence[Example]], AnswerOutput],
) -> AnswerOutput:
    """`run` on groups of like length, put together again: as on all at once, up to float rounding.

    length: tokens of an example that cost something.
    """
    groups = padding_groups([length(example) for example in examples], pass_tokens(device))
    if len(groups) == 1:
        return run(examples)
    outputs = [run([examples[row] for row in group]) for group in groups]
    num_tokens = [len(example.answer_ids) for example in examples]
    whole: dict[str, Any] = {}  # each of their tensors, example after example again
    for name in [name for name, part in vars(outputs[0]).items() if isinstance(part, Tensor)]:
        sizes = [1] * len(examples) if name == "gate_logit_BK" else num_tokens
        pieces: dict[int, Tensor] = {}
        for group, output in zip(groups, outputs, strict=True):
            pieces |= zip(group, vars(output)[name].split([sizes[row] for row in group]), strict=True)
        whole[name] = torch.cat([pieces[row] for row in range(len(examples))])
    return AnswerOutput(examples=examples, **whole)


def pass_tokens(device: torch.device) -> float:
    """What starting a pass costs, in tokens."""
    return math.inf if device.type in _GPUS else GROUP_OVERHEAD_TOKENS


def set_answer_ends(model: CausalLM, template: PromptTemplate) -> None:
    """Make sure the model knows which tokens end an answer and which one pads; call it once after loading."""
    own, tokenizer = model.generation_config, template.tokenizer
    known = [] if own.eos_token_id is None else eos_ids(model)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    own.eos_token_id = sorted({*known, *eos, template.end_id})
    pads = [tokenizer.pad_token_id, tokenizer.eos_token_id, template.end_id]
    own.pad_token_id = next(token for token in pads if token is not None)
