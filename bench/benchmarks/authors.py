"""Fictitious authors, generated: the embedded benchmark, in TOFU's schema, with nothing to download.

The same config always gives the same items. Every fact is drawn at random, so nothing about one author can be
guessed from another; so is the wording of every question and answer, and a paraphrase is one of the other
wordings.
"""

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from bench.benchmarks.items import Benchmark, Item, numbered_requests
from bench.splits import KNOWLEDGE_SPLITS, QUESTION_HEADLINES, QUESTION_SPLITS, Split
from grun.errors import UserError

NUM_PERTURBED = 5
VOLUMES = ("", " II", " III", " IV", " V")
FORGET_PERCENT = {"forget05": 5, "forget10": 10, "forget20": 20, "forget50": 50}


DATA = json.loads(resources.files("bench.benchmarks").joinpath("authors.json").read_text(encoding="utf-8"))
"""Pools of words, bounds of numbers, topics, and general knowledge: [question, right answer, three wrong ones]."""
POOLS: Mapping[str, Sequence[Any]] = {
    **DATA["pools"],
    **{name: range(low, high + 1) for name, (low, high) in DATA["numbers"].items()},
}
TOPICS: Mapping[str, Any] = DATA["topics"]
"""What can be asked of an author: its wordings, where {name}, {born} and {second_book} stand for the author's and {}
for the fact; and what the fact is made of, as a text with pools in it."""


@dataclass(frozen=True, kw_only=True)
class AuthorsConfig:
    """Generated authors with ten questions each, and general knowledge written for this project."""

    name: Literal["authors"] = "authors"
    splits: ClassVar[Mapping[str, Split]] = {
        **QUESTION_SPLITS,
        **KNOWLEDGE_SPLITS,
        "similar": Split(kind="question", role="kept"),
    }
    objectives: ClassVar[tuple[str, ...]] = ("log10_forget_quality", "model_utility")
    headlines: ClassVar[tuple[str, ...]] = (*objectives, *QUESTION_HEADLINES)
    forget_split: Literal["forget05", "forget10", "forget20", "forget50"] = "forget20"
    """The last 5, 10, 20 or 50 % of the authors."""
    num_authors: Annotated[int, Ge(5), Le(1000)] = 20
    """Authors the target model learns."""
    num_holdout_authors: Annotated[int, Ge(0), Le(100)] = 2
    """Further authors that no model ever sees."""
    num_similar_authors: Annotated[int, Ge(0), Le(500)] = 0
    """So many retained authors are made hard to tell from forgotten ones: each shares surname, birthplace, genre and
    prize with one of them. They are the split `similar`."""
    seed: int = 0
    """Seed of the generator."""

    def load(self) -> Benchmark:
        """Generate the items. Raises UserError where the forget split would hold no author."""
        percent = FORGET_PERCENT[self.forget_split]
        num_forget = self.num_authors * percent // 100
        if num_forget == 0:
            raise UserError(
                "benchmark.num_authors",
                f"{self.forget_split} of {self.num_authors} authors is none; use at least {100 // percent}",
            )
        authors = _authors(self.num_authors + self.num_holdout_authors, random.Random(self.seed))
        num_retain = self.num_authors - num_forget
        if self.num_similar_authors > num_retain:
            raise UserError(
                "benchmark.num_similar_authors",
                f"{self.num_similar_authors} of {num_retain} retained authors; use fewer",
            )
        taken = {author["name"] for author in authors}
        for place in range(self.num_similar_authors):
            authors[place] = _likened(authors[place], authors[num_retain + place % num_forget], taken)
        items = [_items(author, random.Random(f"{self.seed}/{author['name']}")) for author in authors]
        known, holdout = items[: self.num_authors], items[self.num_authors :]
        retain = [item for author in known[:-num_forget] for item in author]
        forget = [item for author in known[-num_forget:] for item in author]
        knowledge = {split: [_known(*row) for row in rows] for split, rows in DATA["knowledge"].items()}
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=retain,
            evaluation={
                "forget": forget,
                "retain": retain,
                **knowledge,
                **({"similar": retain[: self.num_similar_authors * len(TOPICS)]} if self.num_similar_authors else {}),
                **({"holdout": [item for author in holdout for item in author]} if holdout else {}),
            },
            requests=numbered_requests(forget, len(TOPICS)),
        )


def _known(question: str, answer: str, *wrong: str) -> Item:
    return Item(question=question, answer=answer, perturbed_answers=wrong)


def _drawn(topic: str, draw: random.Random) -> str:
    """A random fact of this kind."""
    return re.sub(r"{(\w+)}", lambda pool: str(draw.choice(POOLS[pool[1]])), TOPICS[topic]["fact"])


def _number_of(topic: str) -> int:
    """How many facts of this kind there are."""
    return math.prod(len(POOLS[pool]) for pool in re.findall(r"{(\w+)}", TOPICS[topic]["fact"]))


def _authors(count: int, draw: random.Random) -> list[dict[str, str]]:
    """Of each the true filling of every topic's gap, and `second_book`.

    Names, birthdays and books are distinct; every other fact may recur from one author to the next.
    """
    authors = []
    taken: dict[str, set[str]] = {"name": set(), "birthday": set(), "book": set()}

    def fresh(topic: str) -> str:
        """Where all there are have been taken, a sequel: The Salt Garden II."""
        volume = VOLUMES[len(taken[topic]) // _number_of(topic)]
        while (text := _drawn(topic, draw) + volume) in taken[topic]:
            pass
        taken[topic].add(text)
        return text

    for _ in range(count):
        facts = {topic: _drawn(topic, draw) for topic in TOPICS}
        facts |= {topic: fresh(topic) for topic in taken}
        authors.append(facts | {"second_book": fresh("book")})
    return authors


def _likened(author: dict[str, str], other: dict[str, str], taken: set[str]) -> dict[str, str]:
    """The author as a near relative of another: with a first name of its own, which is not taken with that surname."""
    surname = other["name"].split()[-1]
    name = next(f"{first} {surname}" for first in POOLS["first_names"] if f"{first} {surname}" not in taken)
    taken.add(name)
    return author | {topic: other[topic] for topic in ("birthplace", "genre", "prize")} | {"name": name}


def _items(author: dict[str, str], draw: random.Random) -> list[Item]:
    """One item a topic: wordings drawn at random, the paraphrase and the wrong answers in another wording."""
    born = f"{author['birthplace']} on {author['birthday']}"
    items = []
    for topic, entry in TOPICS.items():
        fact = author[topic]
        wrong: list[str] = []
        while len(wrong) < NUM_PERTURBED:
            other = _drawn(topic, draw)
            if other != fact and other not in wrong:
                wrong.append(other)
        wording, other_wording = draw.sample(entry["answers"], 2)

        def fill(text: str, filling: str = "") -> str:
            return text.format(filling, **author, born=born)

        questions = entry["questions"]
        asked = questions.index(draw.choice(questions))
        items.append(
            Item(
                question=fill(questions[asked]),
                answer=fill(wording, fact),
                paraphrased_answer=fill(other_wording, fact),
                paraphrased_question=fill(questions[asked - 1]),
                perturbed_answers=tuple(fill(other_wording, other) for other in wrong),
            )
        )
    return items
