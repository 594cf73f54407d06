"""Any pair of texts to be forgotten and kept, measured as MUSE (arXiv 2407.06460) measures news and books."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from bench.benchmarks.items import Benchmark, Item, PassageRow, QuestionRow, say_repeats
from bench.sources import DataDir, has_part, read_rows
from bench.splits import Split
from grun.settings import LATER


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Two corpora in a folder of yours."""

    name: Literal["corpora"] = "corpora"
    splits: ClassVar[Mapping[str, Split]] = {
        "forget_verbatim": Split(kind="passage", role="forgotten", strangers="holdout_verbatim"),
        "retain_verbatim": Split(kind="passage", role="kept"),
        "holdout_verbatim": Split(kind="passage", role="stranger"),
        "forget_knowledge": Split(kind="text", role="forgotten"),
        "retain_knowledge": Split(kind="text", role="kept"),
    }
    objectives: ClassVar[tuple[str, ...]] = ("forget_verbatim_rouge_l_f1", "retain_verbatim_rouge_l_f1")
    parts: ClassVar[tuple[str, ...]] = ("forget", "retain", "holdout", "forget_qa", "retain_qa")
    headlines: ClassVar[tuple[str, ...]] = (
        *objectives,
        "forget_knowledge_rouge_l_f1",
        "retain_knowledge_rouge_l_f1",
        "privleak",
    )
    data_dir: DataDir
    """Folder with `forget.json` and `retain.json` (text), and where you have them `holdout.json` (text no model has
    seen, for privleak), `forget_qa.json` and `retain_qa.json` (question, answer); each as JSON lines or as one JSON
    array, of texts alone if you like."""
    data_dir_digest: str | None = field(default=None, metadata=LATER)
    """What those files hold; the command finds it out."""
    forget_split: str = "forget"
    """What to call it in the results."""

    def load(self) -> Benchmark:
        """Read the texts. Raises UserError where one is missing or is something else."""
        forget, retain = self._passages("forget"), self._passages("retain")
        evaluation = {"forget_verbatim": forget, "retain_verbatim": retain}
        if has_part(self.data_dir, "holdout"):
            evaluation["holdout_verbatim"] = self._passages("holdout")
        say_repeats(forget, retain, evaluation.get("holdout_verbatim", ()))
        for side in ("forget", "retain"):
            if has_part(self.data_dir, f"{side}_qa"):
                rows = read_rows(QuestionRow, f"{side}_qa", self.data_dir)
                evaluation[f"{side}_knowledge"] = [
                    Item(question=row.question.strip(), answer=row.answer.strip()) for row in rows
                ]
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=retain,
            evaluation=evaluation,
        )

    def _passages(self, part: str) -> list[Item]:
        rows = read_rows(PassageRow, part, self.data_dir)
        return [Item(question="", answer=row.text.strip(), form="passage") for row in rows]
