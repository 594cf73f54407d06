"""Your own questions to be forgotten and kept, from a folder of yours."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from bench.benchmarks.items import Benchmark, Item, QuestionRow, say_repeats
from bench.sources import DataDir, MaybeText, MaybeTexts, has_part, read_rows
from bench.splits import QUESTION_HEADLINES, QUESTION_SPLITS, Split
from grun.errors import UserError
from grun.settings import LATER


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """Questions and answers in a folder of yours."""

    name: Literal["questions"] = "questions"
    splits: ClassVar[Mapping[str, Split]] = QUESTION_SPLITS
    objectives: ClassVar[tuple[str, ...]] = ("log10_forget_quality", "partial_model_utility")
    parts: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout")
    headlines: ClassVar[tuple[str, ...]] = (*objectives, *QUESTION_HEADLINES)
    data_dir: DataDir
    """Folder with `forget.json`, `retain.json` and, where you have it, `holdout.json` (questions no model has seen), as
    JSON lines or one JSON array: `question` and `answer`; where you have them `paraphrased_answer`,
    `paraphrased_question` and `perturbed_answers` (a list of wrong ones, which TOFU calls `perturbed_answer`; truth
    ratio and forget quality need them); and in `forget.json` the name of the `request` that a line belongs to,
    for `grun-bench sequential`."""
    data_dir_digest: str | None = field(default=None, metadata=LATER)
    """What those files hold; the command finds it out."""
    forget_split: str = "forget"
    """What to call it in the results."""

    def load(self) -> Benchmark:
        """Read the lines. Raises UserError where a file or a field is missing or is something else."""
        found = [part for part in self.parts if part != "holdout" or has_part(self.data_dir, part)]
        rows = {part: self._read(part) for part in found}
        evaluation = {part: [row.item for row in own] for part, own in rows.items()}
        requests: dict[str, list[Item]] = {}
        for row, item in zip(rows["forget"], evaluation["forget"], strict=True):
            requests.setdefault(row.request or "001", []).append(item)
        say_repeats(evaluation["forget"], evaluation["retain"], evaluation.get("holdout", ()))
        return Benchmark(
            config=self,
            forget_set=evaluation["forget"],
            retain_set=evaluation["retain"],
            evaluation=evaluation,
            requests=requests,
        )

    def _read(self, part: str) -> "list[_Row]":
        rows = read_rows(_Row, part, self.data_dir, closed=True)
        for name in ("wrong", "paraphrased_answer", "paraphrased_question", "request"):
            if len({getattr(row, name) is None for row in rows}) > 1:
                key = "perturbed_answers" if name == "wrong" else name
                file = f"{self.data_dir}/{part}.json"
                raise UserError("benchmark.data_dir", f"{file} has {key} on some lines; give all or none")
        return rows


@dataclass(frozen=True, kw_only=True)
class _Row(QuestionRow):
    paraphrased_answer: MaybeText = None
    paraphrased_question: MaybeText = None
    perturbed_answers: MaybeTexts = None
    perturbed_answer: MaybeTexts = None
    """As TOFU calls them."""
    request: MaybeText = None

    def __post_init__(self) -> None:
        """Raises UserError where the wrong answers stand under both names, or one of them is right."""
        if self.perturbed_answers and self.perturbed_answer:
            raise UserError("perturbed_answer", "stands beside perturbed_answers; write one of them")
        if self.answer in (self.wrong or ()):
            raise UserError("perturbed_answers", "hold the right answer; write wrong ones only")

    @property
    def wrong(self) -> list[str] | None:
        """The wrong answers, under either name."""
        return self.perturbed_answers or self.perturbed_answer

    @property
    def item(self) -> Item:
        """With what it has of other words and wrong answers."""
        said, asked, wrong = self.paraphrased_answer, self.paraphrased_question, tuple(self.wrong or ())
        return replace(super().item, paraphrased_answer=said, paraphrased_question=asked, perturbed_answers=wrong)
