"""Prompts and answers: the one place where text becomes tokens, and tokens text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grun.data import Example

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
