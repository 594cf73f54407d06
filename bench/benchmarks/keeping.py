"""Questions of one's own, for gates to stay shut for or a model to go on answering as it did, and those that nobody
trains on: prompts in no set at all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bench.benchmarks.items import Benchmark
from bench.sources import Text, read_rows
from grun.errors import UserError
from grun.settings import SHIPPED

NO_SET: Sequence[str] = json.loads(resources.files("bench.benchmarks").joinpath("no_set.json").read_text("utf-8"))
"""General questions of this project's own, in no set of any benchmark."""
_SHIPPED = Path(str(resources.files("bench.benchmarks").joinpath("replay_questions.txt")))


@dataclass(frozen=True, kw_only=True)
class KeptRow:
    """A question; whatever else a row has is not looked at."""

    question: Text


def questions_file(path: str) -> Path:
    """Where it lies; `shipped`: this project's own, about writers, places and everyday things."""
    return _SHIPPED if path == SHIPPED else Path(path)


def own_questions(path: str, benchmark: Benchmark, field: str) -> list[str]:
    """The questions of a file: of a .json one its rows' (objects or bare texts, as in a benchmark's folder), else a
    question a line.

    field: the setting that names the file. Raises UserError where it cannot be read, or holds a question that is
    evaluated: nothing may be fitted to it, and who takes such a file has others of its kind in it, which leaving out
    that question would not take away.
    """
    file = questions_file(path)
    try:
        if file.suffix == ".json":
            questions = [row.question for row in read_rows(KeptRow, file.stem, str(file.parent))]
        else:
            questions = [line.strip() for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, UserError) as error:
        problem = error.problem if isinstance(error, UserError) else f"{file} cannot be read ({type(error).__name__})"
        raise UserError(field, problem) from error
    if not questions:
        raise UserError(field, f"{file} is empty; write a question a line")
    asked = {
        _words(question): split
        for split, items in benchmark.evaluation.items()
        for item in items
        for question in (item.question, item.paraphrased_question or "")
    }
    asked |= {_words(question): "what is in no set" for question in NO_SET}
    evaluated = [question for question in questions if _words(question) in asked]
    if evaluated:
        split = asked[_words(evaluated[0])]
        problem = f"{len(evaluated)} of its questions are evaluated, such as {evaluated[0]!r} of {split}; use others"
        raise UserError(field, problem)
    return questions


def _words(question: str) -> tuple[str, ...]:
    """What makes two questions the same, however they are set."""
    return tuple(question.casefold().split())
