"""Your own questions to be forgotten and kept, from a folder of yours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.benchmarks.items import Benchmark, Item
from bench.files import read_json_lines
from bench.splits import QUESTION_SPLITS, Split
from grun.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """Questions and answers in a folder of yours."""

    name: Literal["questions"] = "questions"
    splits: ClassVar[Mapping[str, Split]] = QUESTION_SPLITS
    objectives: ClassVar[tuple[str, ...]] = ("log10_forget_quality", "partial_model_utility")
    headlines: ClassVar[tuple[str, ...]] = (
        *objectives,
        "forget_rouge_l_recall",
        "retain_rouge_l_recall",
        "forget_relearned_rouge_l_recall",
    )
    data_dir: str
    """Folder with `forget.json`, `retain.json` and, where you have it, `holdout.json` (questions no model has seen), as
    JSON lines: `question` and `answer`; where you have them `paraphrased_answer`, `paraphrased_question` and
    `perturbed_answers` (a list of wrong ones; truth ratio and forget quality need them); and in `forget.json` the
    `request` that a line belongs to, for `grun-bench sequential`."""
    forget_split: str = "forget"
    """What to call it in the results."""

    def load(self) -> Benchmark:
        """Read the lines. Raises UserError where a file or a field is missing."""
        forget, retain = self._read("forget"), self._read("retain")
        requests: dict[str, list[Item]] = {}
        for request, item in forget:
            requests.setdefault(request, []).append(item)
        evaluation = {"forget": [item for _, item in forget], "retain": [item for _, item in retain]}
        if self._file("holdout").is_file():
            evaluation["holdout"] = [item for _, item in self._read("holdout")]
        return Benchmark(
            name=self.name,
            forget_split=self.forget_split,
            forget_set=evaluation["forget"],
            retain_set=evaluation["retain"],
            knowledge_set=[],
            evaluation=evaluation,
            requests=list(requests.values()),
        )

    def _read(self, part: str) -> list[tuple[str, Item]]:
        rows = read_json_lines(self._file(part), "benchmark.data_dir")
        if not rows:
            raise UserError("benchmark.data_dir", f"{self._file(part)} is empty; write a question a line")
        found = [self._item(part, number, row) for number, row in enumerate(rows, start=1)]
        for name in ("perturbed_answers", "paraphrased_answer"):
            if len({bool(getattr(item, name)) for _, item in found}) > 1:
                raise UserError("benchmark.data_dir", f"{self._file(part)} has {name} on some lines; give all or none")
        return found

    def _item(self, part: str, number: int, row: Any) -> tuple[str, Item]:
        where = f"{self._file(part)}, line {number}"
        if not isinstance(row, dict):
            raise UserError("benchmark.data_dir", f"{where} is no JSON object; write question and answer")
        for key in ("question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError("benchmark.data_dir", f"{where} has no {key}; each line needs one")
        wrong = row.get("perturbed_answers", [])
        if not isinstance(wrong, list) or not all(isinstance(text, str) for text in wrong):
            raise UserError("benchmark.data_dir", f"{where}: perturbed_answers is no list of texts; write one")
        return str(row.get("request", "")), Item(
            question=row["question"],
            answer=row["answer"],
            paraphrased_answer=row.get("paraphrased_answer"),
            paraphrased_question=row.get("paraphrased_question"),
            perturbed_answers=tuple(wrong),
        )

    def _file(self, part: str) -> Path:
        return Path(self.data_dir) / f"{part}.json"
