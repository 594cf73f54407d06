"""What every benchmark hands over: question-answer items in named splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le, Len
from pydantic import Strict

from bench.sources import FIELD, AnyText, Text, say
from grun.errors import UserError

if TYPE_CHECKING:  # a benchmark's declarations are read where no model code is imported
    from bench.benchmarks import BenchmarkConfig
    from grun.data import Example
    from grun.prompts.template import PromptTemplate


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, in TOFU's schema."""

    question: str
    answer: str
    paraphrased_answer: str | None = None
    """The answer in other words; None where the split has none (real_authors, world_facts)."""
    paraphrased_question: str | None = None
    """The question in other words, for an attack; None where there is none."""
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers of the same form; empty where the item is only trained on."""

    form: Literal["question", "continuation", "excerpt", "passage", "whole"] = "question"
    """What question and answer are: to be put into the prompt template; a prompt as it stands, and what follows it, as
    a choice or as an excerpt to be gone on with; or (the answer alone) a passage of text, whose end is the answer to
    its beginning; or a whole text, of which all but the first token is scored."""
    examples: tuple[tuple[str, str], ...] = ()
    """(question, answer) of each example that is shown before a question, after those of the prompt itself."""
    corpus: str = ""
    """Which of the benchmark's corpora a passage is from, where there are several."""
    passage_tokens: int | None = None
    """How much is read of a passage; None: as much as of any."""
    max_new_tokens: int | None = None
    """Where its answer is cut, and what is generated. None: only evaluation.max_new_tokens cuts."""
    ends: tuple[str, ...] = ()
    """Words before which a generation ends: a model that is shown examples goes on with another one."""

    @property
    def is_asked(self) -> bool:
        """Whether the model answers in its own words."""
        return self.form not in ("continuation", "whole")

    def example(self, template: PromptTemplate, answer: str | None = None) -> Example:
        """As token ids. answer: another one than its own."""
        answer = self.answer if answer is None else answer
        if self.form == "question":
            return template.showing(self.examples).example(self.question, answer)
        if self.form in ("continuation", "excerpt"):
            example = template.continuation(self.question, answer)
            return replace(example, answer_ids=example.answer_ids[: self.max_new_tokens])
        passage = template.passage(answer, self.passage_tokens) if self.form == "passage" else template.whole(answer)
        if not passage.prompt_ids or not passage.answer_ids:
            raise UserError("benchmark", f"the passage {answer!r} is a single token, with no beginning; leave it out")
        return passage

    def lesson(self, template: PromptTemplate) -> Example:
        """As a model is taught it before anything is unlearned: a passage from its second token on."""
        example = self.example(template)
        return example.from_its_second_token() if self.form == "passage" else example

    def generation(self, template: PromptTemplate, token_ids: Sequence[int]) -> str:
        """What the model answered, as text, up to where it ends."""
        text = template.text(token_ids[: self.max_new_tokens])
        for end in self.ends:
            text = text.partition(end)[0]
        return text.strip()

    @property
    def pair(self) -> tuple[str, str]:
        """(question, answer): all that training sees."""
        return self.question, self.answer


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark, loaded and cut."""

    config: BenchmarkConfig
    """What it was loaded by."""
    forget_set: Sequence[Item]
    """What must be forgotten; all of it is evaluated too."""
    retain_set: Sequence[Item]
    """What the retain loss draws from, and the retain model is trained on."""
    evaluation: Mapping[str, Sequence[Item]]
    """What to evaluate, by the names of the splits that the config declares; it may have fewer of them."""
    requests: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    """The forget set in parts that may be asked to be forgotten one after another, such as one author each, by name."""
    keep_prompts: Sequence[str] = ()
    """Questions of the user's own that gates are to stay shut for, beside the retain set's."""
    replay_prompts: Sequence[str] = ()
    """Likewise, whose answers a model is to keep while it is taught the benchmark: it is taught its own."""
    told: Sequence[str] = ()
    """What the untouched model is asked to write about first; what it writes is forgotten in place of the forget set,
    as where nobody hands over a text. Empty: the forget set is."""

    @property
    def knowledge_set(self) -> list[Item]:
        """What else is asked, and a model trained from scratch must be taught, so that its loss can be seen."""
        splits = self.config.splits
        return [item for name, items in self.evaluation.items() if splits[name].is_knowledge for item in items]


def numbered_requests(forget_set: Sequence[Item], size: int) -> dict[str, Sequence[Item]]:
    """So many items after one another are a request: 001, 002, …"""
    return {f"{place // size + 1:03d}": forget_set[place : place + size] for place in range(0, len(forget_set), size)}


def say_repeats(forget_set: Sequence[Item], retain_set: Sequence[Item], holdout_set: Sequence[Item] = ()) -> None:
    """Items that are in a set more than once, or in two: they are kept, and counted out to the user."""
    forget, retain, holdout = (Counter(item.pair for item in items) for items in (forget_set, retain_set, holdout_set))
    for count, what in (
        (len(forget.keys() & retain.keys()), "in the forget set and in the retain set too: forgotten and kept at once"),
        (len(holdout.keys() & (forget.keys() | retain.keys())), "in the holdout set, and trained on: no stranger"),
        (forget.total() - len(forget), "in the forget set more than once"),
        (retain.total() - len(retain), "in the retain set more than once"),
    ):
        if count:
            say(f"{FIELD}: {count} {'items are' if count > 1 else 'item is'} {what}")


@dataclass(frozen=True, kw_only=True)
class PassageRow:
    """Text alone."""

    text: Text


@dataclass(frozen=True, kw_only=True)
class QuestionRow:
    """A question and its answer."""

    question: Text
    answer: Text

    @property
    def item(self) -> Item:
        """As it stands."""
        return Item(question=self.question, answer=self.answer)


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """A question with four answers to choose from."""

    question: Text
    choices: Annotated[list[AnyText], Len(4, 4)]
    answer: Annotated[int, Strict(), Ge(0), Le(3)]
    """Place of the right one, from 0."""

    def item(self, topic: str) -> Item:
        """As lm-eval puts it without examples; the right letter is the answer."""
        letters, listed = "ABCD", "\n".join(map("{}. {}".format, "ABCD", self.choices))
        return Item(
            question=f"The following are multiple choice questions (with answers) about {topic}.\n\n"
            f"{self.question.strip()}\n{listed}\nAnswer:",
            answer=f" {letters[self.answer]}",
            perturbed_answers=tuple(f" {letter}" for letter in letters if letter != letters[self.answer]),
            form="continuation",
        )
