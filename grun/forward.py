"""A causal LM as training and evaluation see it: answer logits, greedy answers, what is trainable.

Shapes: B sequences, L tokens, N answer tokens of the whole batch, V vocabulary, K edited layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grun.data import Batch, Example, answer_labels, collate, padding_groups
from grun.greedy import decode
from grun.patching import patched

CausalLM = Any
"""A `transformers` causal LM, or a PEFT model around one; neither is typed in a way that would help."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, kw_only=True)
class AnswerOutput:
    """What one pass says about some examples' answers, sequence after sequence."""

    logits_NV: Tensor
    """Logits that predict each answer token."""
    label_N: Tensor
    """The answer tokens."""
    row_N: Tensor
    """The example each of them belongs to."""
    gate_logit_BK: Tensor | None = None
    """Gates before the sigmoid, where the adapter has gates."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Greedy answers to a batch of prompts."""

    answers: list[list[int]]
    """Token ids, EOS left out."""
    gate_logit_BK: Tensor | None = None
    """Gates before the sigmoid, where the adapter has gates."""


GROUP_OVERHEAD_TOKENS = {"cpu": 64}
"""What a forward and backward pass costs before its first token, in tokens; elsewhere so much that none is split."""


class Adapted(Protocol):
    """A model with an adapter on."""

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""

    def prepare(self, examples: Sequence[Example], *, generate: bool, progress: Progress) -> None:
        """Announce examples that will be used many times; generate: that their prompts will be answered, too.

        Changes no result. progress: called where this takes time.
        """

    def answer_output(self, examples: Sequence[Example]) -> AnswerOutput:
        """One pass over some examples, split into groups of like length where that saves padding."""

    def generate(self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> Generated:
        """Greedy answers to a batch of prompts."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves; every other weight is frozen."""

    def train(self, mode: bool) -> None:
        """Switch dropout and the like: True while training, False while evaluating."""


class PlainModel:
    """A model that needs no help in its forward pass: untouched, fully fine-tuned, or wrapped by PEFT."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """See `Adapted`."""
        return self.model.device

    def prepare(self, examples: Sequence[Example], *, generate: bool, progress: Progress) -> None:
        """See `Adapted`. Nothing here stays the same from step to step."""

    def answer_output(self, examples: Sequence[Example]) -> AnswerOutput:
        """See `Adapted`."""
        return in_groups(examples, len, self.device, self._answer_output)

    def _answer_output(self, examples: Sequence[Example]) -> AnswerOutput:
        batch = collate(examples, device=self.device)
        with head_at(self.model, batch.predicts_answer_BL):
            outputs = self.model(**model_inputs(batch))
        return AnswerOutput(logits_NV=outputs.logits[0], label_N=batch.label_N, row_N=batch.row_N)

    @torch.no_grad()
    def generate(self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> Generated:
        """See `Adapted`."""
        return Generated(answers=generate(self.model, prompts, max_new_tokens))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """See `Adapted`."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train(self, mode: bool) -> None:
        """See `Adapted`."""
        self.model.train(mode)


def in_groups(
    examples: Sequence[Example],
    length: Callable[[Example], int],
    device: torch.device,
    run: Callable[[Sequence[Example]], AnswerOutput],
) -> AnswerOutput:
    """`run` on groups of like length, put together again: as on all at once, up to float rounding.

    length: tokens of an example that cost something.
    """
    overhead = GROUP_OVERHEAD_TOKENS.get(device.type)
    if overhead is None or len(groups := padding_groups([length(example) for example in examples], overhead)) == 1:
        return run(examples)
    logits: dict[int, Tensor] = {}
    gates: dict[int, Tensor] = {}
    for group in groups:
        output = run([examples[row] for row in group])
        logits |= zip(group, output.logits_NV.split([len(examples[row].answer_ids) for row in group]), strict=True)
        if output.gate_logit_BK is not None:
            gates |= zip(group, output.gate_logit_BK.split(1), strict=True)
    rows = range(len(examples))
    label_N, row_N = answer_labels(examples)
    return AnswerOutput(
        logits_NV=torch.cat([logits[row] for row in rows]),
        label_N=label_N.to(device),
        row_N=row_N.to(device),
        gate_logit_BK=torch.cat([gates[row] for row in rows]) if gates else None,
    )


def generate(model: CausalLM, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> list[list[int]]:
    """Greedy answers as token ids, EOS left out: the prompts read in one pass, then token by token."""
    inputs = left_padded(prompts, model)
    mask_BL = inputs["attention_mask"]
    position_ids_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    cache = new_cache()
    with head_at(model, last_position(mask_BL)):
        outputs = model(**inputs, position_ids=position_ids_BL, past_key_values=cache, use_cache=True)
    return decode(
        model,
        cache,
        outputs.logits[0],
        mask_BL,
        position_ids_BL[:, -1] + 1,
        max_new_tokens=max_new_tokens,
        eos_ids=set(eos_ids(model)),
    )


def prepare_for_answers(model: CausalLM, tokenizer: Any) -> None:
    """Make sure the model knows which tokens end an answer and which one pads; call it once after loading."""
    own = model.generation_config
    known = [] if own.eos_token_id is None else eos_ids(model)
    own.eos_token_id = sorted({*known, tokenizer.eos_token_id})
    own.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def eos_ids(model: CausalLM) -> list[int]:
    """Every token id that ends an answer."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids)


def model_inputs(batch: Batch) -> dict[str, Any]:
    """A batch as the arguments of a `transformers` forward."""
    return {
        "input_ids": batch.input_ids_BL,
        "attention_mask": batch.attention_mask_BL,
        "use_cache": False,
    }


@contextlib.contextmanager
def head_at(model: CausalLM, positions_BL: Tensor) -> Iterator[None]:
    """Inside, the LM head sees only the positions that are true, so logits come out as [1, positions, V].

    Exact: the head treats every position alone. The model's own forward still does all that follows the head
    (Gemma's soft cap, say).
    """
    head = model.get_output_embeddings()
    forward = head.forward

    def select(hidden_BLD: Tensor) -> Tensor:
        return forward(hidden_BLD[positions_BL][None])

    with patched([(head, select)]):
        yield


def last_position(mask_BL: Tensor) -> Tensor:
    """True in the last column alone: [B, L]."""
    last_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
    last_BL[:, -1] = True
    return last_BL


def left_padded(prompts: Sequence[Sequence[int]], model: CausalLM) -> dict[str, Tensor]:
    """Prompts as the model's arguments: their last tokens stand in the last column."""
    length = max(len(prompt) for prompt in prompts)
    input_ids_BL = torch.full((len(prompts), length), model.generation_config.pad_token_id)
    attention_mask_BL = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids_BL[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask_BL[row, length - len(prompt) :] = 1
    return {"input_ids": input_ids_BL.to(model.device), "attention_mask": attention_mask_BL.to(model.device)}


def new_cache() -> Any:
    """An empty cache that keeps every token at every layer; sliding windows are left to the model's masks."""
    from transformers import DynamicCache

    return DynamicCache()
