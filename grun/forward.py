"""A causal LM as training and evaluation see it: answer logits, greedy answers, what is trainable.

Shapes: B sequences, L tokens, N answer tokens of the whole batch, V vocabulary, D hidden size, K edited layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from grun.data import Batch

CausalLM = Any
"""A `transformers` causal LM, or a PEFT model around one; neither is typed in a way that would help."""


@dataclass(frozen=True, kw_only=True)
class AnswerOutput:
    """What one forward pass says about a batch's answers."""

    logits_NV: Tensor
    """Logits that predict each answer token, in the order of `Batch.label_N`."""
    gate_logit_BK: Tensor | None = None
    """Gates before the sigmoid, where the adapter has gates."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Greedy answers to a batch of prompts."""

    answers: list[list[int]]
    """Token ids, EOS left out."""
    gate_logit_BK: Tensor | None = None
    """Gates before the sigmoid, where the adapter has gates."""


class Adapted(Protocol):
    """A model with an adapter on."""

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""

    def answer_output(self, batch: Batch) -> AnswerOutput:
        """One forward pass over right-padded sequences."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Generated:
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

    def answer_output(self, batch: Batch) -> AnswerOutput:
        """See `Adapted`."""
        with answer_positions_only(self.model, batch):
            return AnswerOutput(logits_NV=self.model(**model_inputs(batch)).logits[0])

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Generated:
        """See `Adapted`."""
        inputs = left_padded(prompts, self.model)
        sequences_BL = self.model.generate(**inputs, generation_config=greedy(self.model, max_new_tokens))
        return Generated(answers=new_tokens(sequences_BL, inputs, self.model))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """See `Adapted`."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train(self, mode: bool) -> None:
        """See `Adapted`."""
        self.model.train(mode)


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
def answer_positions_only(model: CausalLM, batch: Batch) -> Iterator[None]:
    """Inside, the LM head sees only positions that predict an answer token, so logits come out as [1, N, V].

    Exact: the head treats every position alone. The model's own forward still does all that follows the head
    (Gemma's soft cap, say).
    """

    head = model.get_output_embeddings()
    forward = head.forward

    def select(hidden_BLD: Tensor) -> Tensor:
        return forward(hidden_BLD[batch.predicts_answer_BL][None])

    # Not a forward hook: pyvene removes every hook of the model whenever it runs.
    head.forward = select
    try:
        yield
    finally:
        head.forward = forward


def left_padded(prompts: Sequence[Sequence[int]], model: CausalLM) -> dict[str, Tensor]:
    """Prompts as the arguments of `generate`: their last tokens stand in the last column."""
    length = max(len(prompt) for prompt in prompts)
    input_ids_BL = torch.full((len(prompts), length), model.generation_config.pad_token_id)
    attention_mask_BL = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids_BL[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask_BL[row, length - len(prompt) :] = 1
    return {"input_ids": input_ids_BL.to(model.device), "attention_mask": attention_mask_BL.to(model.device)}


def greedy(model: CausalLM, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding, whatever sampling the model's own defaults ask for; every EOS it knows ends an answer."""
    own = model.generation_config
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
    )


def new_tokens(sequences_BL: Tensor, inputs: dict[str, Tensor], model: CausalLM) -> list[list[int]]:
    """What was generated behind the prompts, each up to its first EOS, EOS left out."""
    ends = set(eos_ids(model))
    answers = []
    for row in sequences_BL[:, inputs["input_ids"].shape[1] :].tolist():
        stop = next((index for index, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:stop])
    return answers
