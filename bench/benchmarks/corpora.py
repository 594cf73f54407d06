"""Any pair of texts to be forgotten and kept, measured as MUSE (arXiv 2407.06460) measures news and books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.benchmarks.items import Benchmark, Item
from bench.files import read_json_lines
from bench.splits import Split
from grun.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Two corpora in a folder of yours."""

    name: Literal["corpora"] = "corpora"
    splits: ClassVar[Mapping[str, Split]] = {
        "forget_verbatim": Split(kind="text", role="forgotten", strangers="holdout_verbatim"),
        "retain_verbatim": Split(kind="text", role="kept"),
        "holdout_verbatim": Split(kind="text", role="stranger"),
        "forget_knowledge": Split(kind="text", role="forgotten"),
        "retain_knowledge": Split(kind="text", role="kept"),
    }
    objectives: ClassVar[tuple[str, ...]] = ("forget_verbatim_rouge_l_f1", "retain_verbatim_rouge_l_f1")
    headlines: ClassVar[tuple[str, ...]] = (
        *objectives,
        "forget_knowledge_rouge_l_f1",
        "retain_knowledge_rouge_l_f1",
        "privleak",
    )
    data_dir: str
    """Folder with `forget.json` and `retain.json` (text), and where you have them `holdout.json` (text no model has
    seen, for privleak), `forget_qa.json` and `retain_qa.json` (question, answer); all as JSON lines."""
    forget_split: str = "forget"
    """What to call it in the results."""

    def load(self) -> Benchmark:
        """Read the texts. Raises UserError where one is missing or has no passage of two words."""
        forget, retain = self._passages("forget"), self._passages("retain")
        evaluation = {"forget_verbatim": forget, "retain_verbatim": retain}
        if self._file("holdout").is_file():
            evaluation["holdout_verbatim"] = self._passages("holdout")
        for side in ("forget", "retain"):
            if self._file(f"{side}_qa").is_file():
                evaluation[f"{side}_knowledge"] = [
                    Item(question=self._text(row, "question"), answer=self._text(row, "answer"))
                    for row in self._read(f"{side}_qa")
                ]
        return Benchmark(
            name=self.name,
            forget_split=self.forget_split,
            forget_set=forget,
            retain_set=retain,
            knowledge_set=[item for name, items in evaluation.items() if name.endswith("_knowledge") for item in items],
            evaluation=evaluation,
        )

    def _passages(self, part: str) -> list[Item]:
        texts = [text for row in self._read(part) if len((text := self._text(row, "text")).split()) > 1]
        if not texts:
            raise UserError("benchmark.data_dir", f"{self._file(part)} holds no passage; write a `text` a line")
        return [Item(question="", answer=text, form="passage") for text in texts]

    def _text(self, row: Any, key: str) -> str:
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise UserError("benchmark.data_dir", f"{self.data_dir} has a line without {key}; each needs one")
        return str(row[key]).strip()

    def _read(self, part: str) -> list[Any]:
        return read_json_lines(self._file(part), "benchmark.data_dir")

    def _file(self, part: str) -> Path:
        return Path(self.data_dir) / f"{part}.json"
