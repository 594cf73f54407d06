"""Prompts and answers: the one place where text becomes tokens, and tokens text."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from typing import Any, Literal, Self

from jinja2 import TemplateError

from grun.data import Example
from grun.errors import UserError
from grun.prompts.config import ANSWER, QUESTION, PromptConfig

PASSAGE_TOKENS = 512
PASSAGE_PROMPT_SHARE = 0.8
PROBE = "grun-answer"
"""An answer by which a chat template shows what it puts around one."""
FIXED_DAY = resources.files("grun.prompts").joinpath("fixed_day.j2").read_text(encoding="utf-8")
"""Before a chat template, it stands for `strftime_now`, by which templates ask for today's date."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a question and its answer become token ids, the same in training, scoring and generation.

    The prompt is tokenized by itself, so its last token (the edited position) never depends on the answer. The answer
    is tokenized as the prompt's continuation: a tokenizer that puts a blank before every text puts none there.
    """

    tokenizer: Any
    """A `transformers` tokenizer."""
    config: PromptConfig = field(default_factory=PromptConfig)
    """What stands around question and answer."""

    @classmethod
    def of(cls, tokenizer: Any, config: PromptConfig | None = None) -> Self:
        """config: None for the tokenizer's chat template as it is, or the plain prompt where it has none."""
        return cls(tokenizer=tokenizer, config=config or PromptConfig())

    @cached_property
    def style(self) -> Literal["chat", "plain"]:
        """Raises UserError where a chat is asked for, and the tokenizer has no template."""
        if self.config.style == "chat" and not self.tokenizer.chat_template:
            raise UserError("model.prompt.style", "this model's tokenizer has no chat template; use plain")
        if self.config.style != "auto":
            return self.config.style
        return "chat" if self.tokenizer.chat_template else "plain"

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer. Raises UserError where the tokenizer has no such token."""
        name = self.config.turn_end
        if name is not None:
            if name not in self.tokenizer.get_vocab():
                raise UserError("model.prompt.turn_end", f"{name!r} is no token of this model; name one that is")
            return int(self.tokenizer.convert_tokens_to_ids(name))
        if self.style == "chat":
            after = self.tokenizer(self._turn[1], add_special_tokens=False).input_ids
            ends = [int(token) for token in after if token in self.tokenizer.added_tokens_decoder]
            if ends:
                return ends[0]
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "model.prompt.turn_end", "this model's tokenizer has no EOS; name the token that ends answers"
            )
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """Token ids of the prompt; its last token is the edited position.

        Raises UserError where not even the end of the question fits into `max_tokens`.
        """
        ids, limit = self._prompt_ids(question), self.config.max_tokens
        if limit is None or len(ids) <= limit:
            return ids
        words = self.tokenizer(question, add_special_tokens=False).input_ids
        kept = len(words)
        while len(ids) > limit:
            kept -= len(ids) - limit
            if kept <= 0:
                raise UserError("model.prompt.max_tokens", f"{limit} leaves no room for a question; use more")
            # A character that was cut in two has lost its beginning, too.
            ids = self._prompt_ids(self.tokenizer.decode(words[-kept:]).lstrip(" \N{REPLACEMENT CHARACTER}"))
        return ids

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Token ids of the answer, the end of the turn included."""
        text, (asking, before) = self._blank + answer, self._asking
        whole = self._read(asking + text, special=self.style == "plain")
        if whole[: len(before)] == before:
            return (*whole[len(before) :], self.end_id)
        # Together, its first characters and the prompt's last would be one token.
        return (*self.tokenizer(text, add_special_tokens=False).input_ids, self.end_id)

    def example(self, question: str, answer: str) -> Example:
        """Both halves together."""
        return Example(prompt_ids=self.prompt_ids(question), answer_ids=self.answer_ids(answer))

    def continuation(self, context: str, answer: str) -> Example:
        """A text as it stands and what follows it, tokenized together and cut apart, as lm-evaluation-harness does."""
        context_ids = self._read(context, special=True)
        whole_ids = self._read(context + answer, special=True)
        return Example(prompt_ids=context_ids, answer_ids=whole_ids[len(context_ids) :])

    def passage(self, text: str, num_tokens: int | None = None) -> Example:
        """The first so many tokens of a text, or PASSAGE_TOKENS: PASSAGE_PROMPT_SHARE of them stand for the prompt."""
        ids = self._read(text, special=True)[: num_tokens or PASSAGE_TOKENS]
        cut = min(max(int(PASSAGE_PROMPT_SHARE * len(ids)), 1), len(ids) - 1)
        return Example(prompt_ids=ids[:cut], answer_ids=ids[cut:])

    def whole(self, text: str) -> Example:
        """All of a text, its first token standing for the prompt."""
        ids = self._read(text, special=True)
        return Example(prompt_ids=ids[:1], answer_ids=ids[1:])

    def showing(self, examples: Sequence[tuple[str, str]]) -> Self:
        """The same, with further examples before the question."""
        if not examples:
            return self
        return replace(self, config=replace(self.config, examples=(*self.config.examples, *examples)))

    def text(self, token_ids: Sequence[int]) -> str:
        """Generated ids as plain text, special tokens dropped."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def shown(self, example: Example) -> str:
        """All that the model reads of an example and is to say, special tokens included."""
        return str(self.tokenizer.decode([*example.prompt_ids, *example.answer_ids], skip_special_tokens=False))

    def _prompt_ids(self, question: str) -> tuple[int, ...]:
        if question not in self._known:
            self._known[question] = self._read(self._prompt(question), special=self.style == "plain")
        return self._known[question]

    def _read(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids. special: with the tokens that begin a text, but without one that ends it: it goes on."""
        ids = tuple(self.tokenizer(text, add_special_tokens=special).input_ids)
        ends = special and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if ends and not text.endswith(self.tokenizer.eos_token) else ids

    def _prompt(self, question: str) -> str:
        """All that stands before an answer, save the blanks that it begins with."""
        if self.style == "chat":
            return self._chat(question) + self._turn[0].rstrip(" ")
        asking = self.config.text.removesuffix(ANSWER).rstrip(" ")
        system = [] if self.config.system is None else [self.config.system]
        shown = [asking.replace(QUESTION, one) + self._blank + answer for one, answer in self.config.examples]
        return "\n\n".join([*system, *shown, asking.replace(QUESTION, question)])

    @cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        """Question → its prompt's ids: it is asked with several answers."""
        return {}

    @cached_property
    def _asking(self) -> tuple[str, tuple[int, ...]]:
        """The prompt of no question, and its ids."""
        return self._prompt(""), self._prompt_ids("")

    @cached_property
    def _blank(self) -> str:
        """The blanks that an answer begins with: tokenizers make one token of a blank and the word after it."""
        before = self._turn[0] if self.style == "chat" else self.config.text.removesuffix(ANSWER)
        return " " * (len(before) - len(before.rstrip(" ")))

    @cached_property
    def _turn(self) -> tuple[str, str]:
        """What the chat template puts before an answer, beyond what it asks for one with, and what it puts after it."""
        asked = self._chat("?")
        before, _, after = self._chat("?", PROBE).rpartition(PROBE)
        return before.removeprefix(asked) if before.startswith(asked) else "", after

    @cached_property
    def _template(self) -> str:
        template = str(self.tokenizer.get_chat_template())
        return FIXED_DAY + template if "strftime_now" in template else template

    def _chat(self, question: str, answer: str | None = None) -> str:
        """The chat as text. answer: None where it is asked for. Raises UserError where the template refuses it."""
        turns = [turn for example in self.config.examples for turn in example]
        turns += [question] if answer is None else [question, answer]
        messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
        if self.config.system is not None:
            messages.insert(0, {"role": "system", "content": self.config.system})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=answer is None,
                    tokenize=False,
                    chat_template=self._template,
                    date_string=self.config.date,  # templates of Llama 3's kind put it in, else today's
                    fixed_day=self.config.day_by_directive,
                )
            )
        except TemplateError as error:
            raise UserError("model.prompt", f"the model's chat template refuses it ({error}); change it") from error
