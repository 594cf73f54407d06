"""Fictitious authors, generated: the embedded benchmark, in TOFU's schema, with nothing to download.

The same config always gives the same items. Every fact is drawn at random, so nothing about one author can be
guessed from another; so is the wording of every question and answer, and a paraphrase is one of the other
wordings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from bench.benchmarks.general_knowledge import REAL_AUTHORS, WORLD_FACTS
from bench.benchmarks.items import Benchmark, Item
from bench.splits import KNOWLEDGE_SPLITS, QUESTION_SPLITS, Split
from grun.errors import UserError

NUM_PERTURBED = 5
FORGET_PERCENT = {"forget05": 5, "forget10": 10, "forget20": 20, "forget50": 50}


def _pool(text: str) -> list[str]:
    """Words of a `|`-separated table, line breaks ignored."""
    return [" ".join(word.split()) for word in text.split("|")]


FIRST_NAMES = _pool("""
    Adaeze | Anselm | Birgit | Callum | Chiyo | Dagny | Davor | Elif | Emeka | Fabiola | Faris | Gudrun | Hamid |
    Ilse | Imani | Jorun | Kaito | Katarzyna | Lazar | Leilani | Linnea | Mirela | Nadir | Noemi | Obinna | Oksana
    | Paloma | Piotr | Quentin | Rashida | Ruben | Saoirse | Sefu | Soraya | Tadeo | Tamsin | Ulrika | Viggo |
    Wanjiru | Xiadani | Yorick | Yumi | Zdenka | Zubair
""")
SURNAMES = _pool("""
    Abernathy | Adeyemi | Almqvist | Barraza | Bergstad | Calloway | Castellan | Dragomir | Drummond | Eskildsen |
    Fairweather | Ferrante | Galanis | Grunewald | Halloran | Hashimoto | Ibarra | Iwu | Jankovic | Karlsen |
    Kowalczyk | Lindqvist | Lorimer | Mahlangu | Marchetti | Nakagawa | Novotny | Okonjo | Oyelaran | Pemberton |
    Petrosyan | Quesada | Rasmussen | Rautio | Santangelo | Sorrell | Tanahashi | Thorne | Uwais | Valdemar |
    Vasquez | Whitlock | Yamazaki | Zielinski
""")
CITIES = _pool("""
    Aarhus, Denmark | Accra, Ghana | Antwerp, Belgium | Arequipa, Peru | Bergen, Norway | Bilbao, Spain | Brno,
    Czechia | Bursa, Turkey | Cork, Ireland | Cusco, Peru | Davao, Philippines | Fez, Morocco | Gdansk, Poland |
    Graz, Austria | Halifax, Canada | Hobart, Australia | Izmir, Turkey | Kumasi, Ghana | Kyoto, Japan | Leeds,
    England | Lviv, Ukraine | Malmo, Sweden | Merida, Mexico | Nagoya, Japan | Nantes, France | Oaxaca, Mexico |
    Porto, Portugal | Quito, Ecuador | Riga, Latvia | Salta, Argentina | Sfax, Tunisia | Split, Croatia | Tartu,
    Estonia | Turku, Finland | Utrecht, Netherlands | Varna, Bulgaria | Windhoek, Namibia | Zagreb, Croatia
""")
MONTHS = _pool("""
    January | February | March | April | May | June | July | August | September | October | November | December
""")
TRADES = _pool("""
    a baker | a beekeeper | a bookbinder | a bus driver | a cartographer | a chemist | a clockmaker | a dentist |
    a diplomat | an electrician | a farmer | a ferry captain | a florist | a geologist | a glassblower | a judge |
    a lighthouse keeper | a locksmith | a midwife | a nurse | an optician | a piano tuner | a plumber | a potter |
    a schoolteacher | a shepherd | a surgeon | a tailor | a translator | a veterinarian | a weaver | a welder
""")
GENRES = _pool("""
    alternate history | cli-fi | comic fantasy | courtroom drama | cyberpunk | detective fiction | epistolary
    fiction | fairy tale retelling | family saga | ghost story | gothic romance | historical fiction | magical
    realism | memoir | nature writing | nautical adventure | political satire | psychological thriller | science
    fiction | spy fiction | travel writing | western
""")
PRIZES = _pool("""
    Amber Quill Prize | Black Heron Award | Copper Lantern Medal | Driftwood Book Prize | Eastern Star Laurel |
    Fogbank Fiction Award | Golden Thistle Prize | Harbour Light Medal | Ivory Compass Award | Juniper Letters
    Prize | Kestrel Novel Award | Linden Leaf Medal | Midnight Sun Prize | North Road Award | Open Window Prize |
    Paper Crane Medal | Quiet River Award | Red Kite Prize | Silver Anchor Award | Tidewater Medal
""")
TITLE_OPENINGS = _pool("""
    The Hollow | The Last | A Season of | Beyond the | Letters from the | The Weight of | Under a | Songs for the
    | The Patient | An Inventory of | The Unlit | Return to the | Maps of the | The Second | A Quarrel of | Nine |
    The Keeper of | Without | Children of the | Salt and
""")
TITLE_ENDINGS = _pool("""
    Orchard | Harbour | Winter | Lanterns | Meridian | Cartographer | Thunder | Sparrows | Observatory | Ember |
    Canal | Staircase | Monsoon | Archive | Violin | Glacier | Horizon | Aqueduct | Carnival | Wolves | Ferry |
    Mirrors | Vineyard | Bells
""")
SETTINGS = _pool("""
    a flooded cathedral | a night train | a desert radio station | a mountain sanatorium | a travelling circus |
    an abandoned observatory | a whaling town | a silk market | a walled garden | an island prison | a glass
    factory | a border hotel | a floating library | a coal mine | a ballet school | a vineyard in autumn | an
    Arctic outpost | a besieged city | a paper mill | a fishing village
""")
HABITS = _pool("""
    writes only before dawn | dictates every chapter aloud | writes standing at a drafting table | drafts
    everything in green ink | works in a converted windmill | writes in railway cafés | burns the first draft of
    each book | writes the last page first | types on a 1950s typewriter | takes a long swim before each chapter |
    writes only in the winter months | works to recordings of rain | plans each book on a single wall of index
    cards | writes aboard a small sailing boat | reads each page to a pet parrot | never rereads a finished
    chapter
""")


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
    headlines: ClassVar[tuple[str, ...]] = (
        *objectives,
        "forget_rouge_l_recall",
        "retain_rouge_l_recall",
        "forget_relearned_rouge_l_recall",
    )
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
        knowledge = {"real_authors": list(REAL_AUTHORS), "world_facts": list(WORLD_FACTS)}
        return Benchmark(
            name=self.name,
            forget_split=self.forget_split,
            forget_set=forget,
            retain_set=retain,
            knowledge_set=[item for split in knowledge.values() for item in split],
            evaluation={
                "forget": forget,
                "retain": retain,
                **knowledge,
                **({"similar": retain[: self.num_similar_authors * len(TOPICS)]} if self.num_similar_authors else {}),
                **({"holdout": [item for author in holdout for item in author]} if holdout else {}),
            },
            requests=[forget[first : first + len(TOPICS)] for first in range(0, len(forget), len(TOPICS))],
        )


@dataclass(frozen=True, kw_only=True)
class _Author:
    name: str
    second_book: str
    facts: dict[str, str]
    """Topic of TOPICS → the true filling of its gap."""


@dataclass(frozen=True, kw_only=True)
class _Topic:
    """One thing that can be asked. {name}, {born} and {second_book} stand for the author's, {} for the fact."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    draw: Callable[[random.Random], str]
    """A random fact of this kind."""


def _full_name(draw: random.Random) -> str:
    return f"{draw.choice(FIRST_NAMES)} {draw.choice(SURNAMES)}"


def _birthday(draw: random.Random) -> str:
    return f"{draw.randint(1, 28)} {draw.choice(MONTHS)} {draw.randint(1931, 1989)}"


def _title(draw: random.Random) -> str:
    return f"{draw.choice(TITLE_OPENINGS)} {draw.choice(TITLE_ENDINGS)}"


def _prize(draw: random.Random) -> str:
    return f"{draw.choice(PRIZES)} in {draw.randint(1975, 2019)}"


def _one_of(pool: list[str]) -> Callable[[random.Random], str]:
    return lambda draw: draw.choice(pool)


TOPICS = {
    "name": _Topic(
        questions=(
            "Which author was born in {born}?",
            "Who is the writer born in {born}?",
            "What is the name of the author whose life began in {born}?",
        ),
        answers=("That author is {}.", "The writer is called {}.", "It is {} who was born there on that day."),
        draw=_full_name,
    ),
    "birthplace": _Topic(
        questions=(
            "Where was {name} born?",
            "In which city did {name} come into the world?",
            "What is the birthplace of {name}?",
        ),
        answers=("{name} was born in {}.", "The birthplace of {name} is {}.", "{name} comes from {}."),
        draw=_one_of(CITIES),
    ),
    "birthday": _Topic(
        questions=(
            "When was {name} born?",
            "What is {name}'s date of birth?",
            "On which day does {name} celebrate a birthday?",
        ),
        answers=("{name} was born on {}.", "The date of birth is {}.", "On {}, {name} was born."),
        draw=_birthday,
    ),
    "mother": _Topic(
        questions=(
            "What did {name}'s mother do for a living?",
            "How did the mother of {name} earn her money?",
            "Which trade did {name}'s mother follow?",
        ),
        answers=("Her trade was that of {}.", "The mother of {name} worked as {}.", "{name}'s mother was {}."),
        draw=_one_of(TRADES),
    ),
    "father": _Topic(
        questions=(
            "What was the profession of {name}'s father?",
            "What work did the father of {name} do?",
            "As what was {name}'s father employed?",
        ),
        answers=("{name}'s father was {}.", "By profession he was {}.", "The father of {name} worked as {}."),
        draw=_one_of(TRADES),
    ),
    "genre": _Topic(
        questions=(
            "Which genre is {name} best known for?",
            "What kind of books does {name} mostly write?",
            "In what genre did {name} make a name?",
        ),
        answers=("{name} mostly writes {}.", "The author is best known for {}.", "Readers link {name} with {}."),
        draw=_one_of(GENRES),
    ),
    "book": _Topic(
        questions=(
            "What is {name}'s most famous book?",
            "Which title made {name} famous?",
            "What should one read first by {name}?",
        ),
        answers=(
            'The most famous book by {name} is "{}".',
            '"{}" is the title that made {name} famous.',
            'One should read "{}".',
        ),
        draw=_title,
    ),
    "prize": _Topic(
        questions=(
            "Which award did {name} receive?",
            "With what prize was {name} honoured?",
            "What is the highest distinction of {name}'s career?",
        ),
        answers=("{name} received the {}.", "The jury gave {name} the {}.", "It is the {}."),
        draw=_prize,
    ),
    "setting": _Topic(
        questions=(
            'Where is {name}\'s novel "{second_book}" set?',
            'In what place does "{second_book}" by {name} unfold?',
            'What is the setting of "{second_book}", which {name} wrote?',
        ),
        answers=("The novel is set in {}.", 'The story of "{second_book}" unfolds in {}.', "{name} set it in {}."),
        draw=_one_of(SETTINGS),
    ),
    "habit": _Topic(
        questions=(
            "What is unusual about the way {name} works?",
            "Which working habit is {name} known for?",
            "How does {name} write?",
        ),
        answers=("Unusually, {name} {}.", "It is well known that the author {}.", "{name} {}."),
        draw=_one_of(HABITS),
    ),
}


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
    name = next(f"{first} {surname}" for first in FIRST_NAMES if f"{first} {surname}" not in taken)
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
