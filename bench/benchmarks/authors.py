"""Fictitious authors, generated: the embedded benchmark, in TOFU's schema, with nothing to download.

The same config always gives the same items. Every fact is drawn at random, so nothing about one author can be
guessed from another; so is the wording of every question and answer, and a paraphrase is one of the other
wordings.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from bench.benchmarks.items import Benchmark, Item, numbered_requests
from bench.splits import KNOWLEDGE_SPLITS, QUESTION_HEADLINES, QUESTION_SPLITS, Split
from grun.errors import UserError

NUM_PERTURBED = 5
FORGET_PERCENT = {"forget05": 5, "forget10": 10, "forget20": 20, "forget50": 50}


DATA = json.loads(resources.files("bench.benchmarks").joinpath("authors.json").read_text(encoding="utf-8"))
"""Pools of words, the wordings of each topic, and general knowledge: [question, right answer, three wrong ones]."""
POOLS: Mapping[str, list[str]] = DATA["pools"]


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
        taken = {author.name for author in authors}
        for place in range(self.num_similar_authors):
            authors[place] = _likened(authors[place], authors[num_retain + place % num_forget], taken)
        items = [_items(author, random.Random(f"{self.seed}/{author.name}")) for author in authors]
        known, holdout = items[: self.num_authors], items[self.num_authors :]
        retain = [item for author in known[:-num_forget] for item in author]
        forget = [item for author in known[-num_forget:] for item in author]
        knowledge = {
            split: [
                Item(question=question, answer=answer, perturbed_answers=tuple(wrong))
                for question, answer, *wrong in rows
            ]
            for split, rows in DATA["knowledge"].items()
        }
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


@dataclass(frozen=True, kw_only=True)
class _Author:
    name: str
    second_book: str
    facts: dict[str, str]
    """Topic of TOPICS → the true filling of its gap."""


def _full_name(draw: random.Random) -> str:
    return f"{draw.choice(POOLS['first_names'])} {draw.choice(POOLS['surnames'])}"


def _birthday(draw: random.Random) -> str:
    return f"{draw.randint(1, 28)} {draw.choice(POOLS['months'])} {draw.randint(1931, 1989)}"


def _title(draw: random.Random) -> str:
    return f"{draw.choice(POOLS['title_openings'])} {draw.choice(POOLS['title_endings'])}"


def _prize(draw: random.Random) -> str:
    return f"{draw.choice(POOLS['prizes'])} in {draw.randint(1975, 2019)}"


def _one_of(pool: str) -> Callable[[random.Random], str]:
    return lambda draw: draw.choice(POOLS[pool])


@dataclass(frozen=True, kw_only=True)
class _Topic:
    """One thing that can be asked. {name}, {born} and {second_book} stand for the author's, {} for the fact."""

    questions: list[str]
    answers: list[str]
    draw: Callable[[random.Random], str]
    """A random fact of this kind."""


_DRAWS = {
    "name": _full_name,
    "birthplace": _one_of("cities"),
    "birthday": _birthday,
    "mother": _one_of("trades"),
    "father": _one_of("trades"),
    "genre": _one_of("genres"),
    "book": _title,
    "prize": _prize,
    "setting": _one_of("settings"),
    "habit": _one_of("habits"),
}
TOPICS = {topic: _Topic(**DATA["topics"][topic], draw=draw) for topic, draw in _DRAWS.items()}


def _authors(count: int, draw: random.Random) -> list[_Author]:
    """Distinct names, birthdays and books; every other fact may recur from one author to the next."""
    authors: list[_Author] = []
    taken: set[str] = set()

    def fresh(make: Callable[[random.Random], str]) -> str:
        while (text := make(draw)) in taken:
            pass
        taken.add(text)
        return text

    for _ in range(count):
        facts = {topic: entry.draw(draw) for topic, entry in TOPICS.items()}
        facts |= {"name": fresh(_full_name), "birthday": fresh(_birthday), "book": fresh(_title)}
        authors.append(_Author(name=facts["name"], second_book=fresh(_title), facts=facts))
    return authors


def _likened(author: _Author, other: _Author, taken: set[str]) -> _Author:
    """The author as a near relative of another: with a first name of its own, which is not taken with that surname."""
    surname = other.name.split()[-1]
    name = next(f"{first} {surname}" for first in POOLS["first_names"] if f"{first} {surname}" not in taken)
    taken.add(name)
    shared = {topic: other.facts[topic] for topic in ("birthplace", "genre", "prize")}
    return replace(author, name=name, facts={**author.facts, **shared, "name": name})


def _items(author: _Author, draw: random.Random) -> list[Item]:
    """One item a topic: wordings drawn at random, the paraphrase and the wrong answers in another wording."""
    born = f"{author.facts['birthplace']} on {author.facts['birthday']}"
    items = []
    for topic, entry in TOPICS.items():
        fact = author.facts[topic]
        wrong: list[str] = []
        while len(wrong) < NUM_PERTURBED:
            other = entry.draw(draw)
            if other != fact and other not in wrong:
                wrong.append(other)
        wording, other_wording = draw.sample(entry.answers, 2)

        def fill(text: str, filling: str = "") -> str:
            return text.format(filling, name=author.name, second_book=author.second_book, born=born)

        asked = entry.questions.index(draw.choice(entry.questions))
        items.append(
            Item(
                question=fill(entry.questions[asked]),
                answer=fill(wording, fact),
                paraphrased_answer=fill(other_wording, fact),
                paraphrased_question=fill(entry.questions[asked - 1]),
                perturbed_answers=tuple(fill(other_wording, other) for other in wrong),
            )
        )
    return items
