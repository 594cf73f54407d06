"""Prompts, answers and batches: the one place where text becomes tokens.

Shapes: B sequences, L tokens, N answer tokens of the whole batch (sequence after sequence).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

TemplateStyle = Literal["plain", "chat"]
PASSAGE_TOKENS = 512
PASSAGE_PROMPT_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a question and its answer become token ids, the same in training, scoring and generation.

    Prompt and answer are tokenized apart, so the last prompt token (the edited position) never depends on
    the answer. The answer ends in the tokenizer's EOS.
    """

    tokenizer: Any
    """A `transformers` tokenizer."""
    style: TemplateStyle
    """`plain` is "Question: …\\nAnswer:"; `chat` is the tokenizer's own chat template."""

    @classmethod
    def of(cls, tokenizer: Any) -> PromptTemplate:
        """The chat template where the tokenizer has one, else the plain one."""
        return cls(tokenizer=tokenizer, style="chat" if tokenizer.chat_template else "plain")

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """Token ids of the prompt; its last token is the edited position."""
        if self.style == "chat":
            message = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(
                message,
                add_generation_prompt=True,
                tokenize=False,
                date_string="26 Jul 2024",  # Llama 3's template would otherwise put today's date into the prompt
            )
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        return tuple(self.tokenizer(f"Question: {question}\nAnswer:").input_ids)

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Token ids of the answer, EOS included."""
        text = answer if self.style == "chat" else f" {answer}"
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return (*ids, self.tokenizer.eos_token_id)

    def example(self, question: str, answer: str) -> Example:
        """Both halves together."""
        return Example(prompt_ids=self.prompt_ids(question), answer_ids=self.answer_ids(answer))

    def continuation(self, context: str, answer: str) -> Example:
        """A text as it stands and what follows it, tokenized together and cut apart, as lm-evaluation-harness does."""
        context_ids = self.tokenizer(context).input_ids
        whole_ids = self.tokenizer(context + answer).input_ids
        return Example(prompt_ids=tuple(context_ids), answer_ids=tuple(whole_ids[len(context_ids) :]))

    def passage(self, text: str) -> Example:
        """The first PASSAGE_TOKENS tokens of a text: PASSAGE_PROMPT_SHARE of them stand for the prompt."""
        ids = tuple(self.tokenizer(text).input_ids[:PASSAGE_TOKENS])
        cut = min(max(int(PASSAGE_PROMPT_SHARE * len(ids)), 1), len(ids) - 1)
        return Example(prompt_ids=ids[:cut], answer_ids=ids[cut:])

    def text(self, token_ids: Sequence[int]) -> str:
        """Generated ids as plain text, special tokens dropped."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt with one answer, as token ids."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens the model reads: the last answer token is only ever predicted."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded sequences and where their answers are."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    predicts_answer_BL: Tensor
    """bool: positions whose next token is an answer token; N of them are true."""
    label_N: Tensor
    """The answer tokens, sequence after sequence."""
    row_N: Tensor
    """The sequence each of them belongs to."""
    edited_position_B: Tensor
    """Index of the last prompt token."""

    def __len__(self) -> int:
        return self.input_ids_BL.shape[0]


def collate(examples: Sequence[Example], *, device: torch.device | str = "cpu") -> Batch:
    """Examples → one right-padded batch. Padding is masked, so it may be any valid token: 0."""
    length = max(len(example) for example in examples)
    shape = (len(examples), length)
    input_ids_BL = torch.zeros(shape, dtype=torch.long)
    attention_mask_BL = torch.zeros(shape, dtype=torch.long)
    predicts_answer_BL = torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        end = len(example)
        input_ids_BL[row, :end] = torch.tensor((example.prompt_ids + example.answer_ids)[:end])
        attention_mask_BL[row, :end] = 1
        predicts_answer_BL[row, end - len(example.answer_ids) : end] = True
    label_N, row_N = answer_labels(examples)
    return Batch(
        input_ids_BL=input_ids_BL.to(device),
        attention_mask_BL=attention_mask_BL.to(device),
        predicts_answer_BL=predicts_answer_BL.to(device),
        label_N=label_N.to(device),
        row_N=row_N.to(device),
        edited_position_B=torch.tensor([len(example.prompt_ids) - 1 for example in examples]).to(device),
    )


def answer_labels(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Every answer token, sequence after sequence, and the sequence it belongs to: [N] each."""
    labels = [token for example in examples for token in example.answer_ids]
    counts_B = torch.tensor([len(example.answer_ids) for example in examples])
    return torch.tensor(labels), torch.repeat_interleave(torch.arange(len(examples)), counts_B)


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, so padding is small and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padding_groups(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Indices in groups of like length, longest first, cut where tokens and padding cost least together.

    lengths: tokens of each sequence; a group costs its size times its longest.
    overhead: what starting a group costs, in tokens of padding. Exact, by dynamic programming over the cuts.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    best = [(0, 0)]  # for the first n of them: (cost, where their last group starts)
    for end in range(1, len(order) + 1):
        best.append(
            min((best[start][0] + (end - start) * lengths[order[start]] + overhead, start) for start in range(end))
        )
    groups: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def epoch_batches(num_items: int, batch_size: int, num_epochs: int, seed: int) -> Iterator[list[int]]:
    """Indices of every item once an epoch, reshuffled each epoch; the last batch of an epoch may be short."""
    shuffle = random.Random(seed)
    for _ in range(num_epochs):
        order = list(range(num_items))
        shuffle.shuffle(order)
        for start in range(0, num_items, batch_size):
            yield order[start : start + batch_size]


def paired_batches(
    num_forget: int, num_retain: int, *, batch_size: int, num_epochs: int, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Forget and retain indices for each step, as many of one as of the other.

    An epoch is one pass over the forget set. Retain items come from an endless stream of reshuffled passes,
    so a forget item meets a new retain item every time.
    """
    retain_stream = _endless(num_retain, seed + 1)
    for forget in epoch_batches(num_forget, batch_size, num_epochs, seed):
        yield forget, [next(retain_stream) for _ in forget]


def _endless(num_items: int, seed: int) -> Iterator[int]:
    shuffle = random.Random(seed)
    while True:
        order = list(range(num_items))
        shuffle.shuffle(order)
        yield from order
