"""RWKU (arXiv 2406.10890): forget what a model learned of famous people, keep what it knows of those around them.

Passages about the targets are unlearned; probes of three levels ask for what is left: a cloze, a question, and a
question put in one of nine adversarial ways. Neighbours are what is near a target and must stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from bench.benchmarks.items import Benchmark, ChoiceRow, Item, PassageRow, say_repeats
from bench.hub.data import HubPart
from bench.sources import DataDir, Kind, Text, Texts, read_rows
from bench.splits import Split
from grun.errors import UserError
from grun.settings import LATER

HUB_ID = "jinzhuoran/RWKU"
PROBES = {
    "rwku_forget_cloze": "forget_level1",
    "rwku_forget_question": "forget_level2",
    "rwku_forget_adversarial": "forget_level3",
    "rwku_neighbor_cloze": "neighbor_level1",
    "rwku_neighbor_question": "neighbor_level2",
}
"""Split → the configuration that the released data set has it under."""
CLOZE = "Please complete the blank in the following question."
TELL = "Write a short passage about {name}: who that is, and what there is to be known."
QUESTION = "Please briefly answer the following question."


@dataclass(frozen=True, kw_only=True)
class RwkuConfig:
    """Knowledge of real people, by levels."""

    name: Literal["rwku"] = "rwku"
    splits: ClassVar[Mapping[str, Split]] = {
        **{split: Split(kind="text", role="forgotten" if "forget" in split else "kept") for split in PROBES},
        "rwku_general": Split(kind="choice", role="kept"),
        "rwku_factuality": Split(kind="text", role="kept"),
    }
    objectives: ClassVar[tuple[str, ...]] = (
        "rwku_forget_question_rouge_l_recall",
        "rwku_neighbor_question_rouge_l_recall",
    )
    headlines: ClassVar[tuple[str, ...]] = (
        *(f"{split}_rouge_l_recall" for split in PROBES),
        "rwku_general_accuracy",
        "rwku_factuality_rouge_l_recall",
    )
    data_dir: DataDir | None = None
    """Folder with the configurations of the released data set, a JSON file each: `forget_target` (target),
    `forget_level1` to `3` and `neighbor_level1` and `2` (subject, query, answer, type), `utility_general` (task,
    question, choices, answer), `utility_factuality` (question, answers), `train_original_passage` (subject, text);
    None: jinzhuoran/RWKU on the Hugging Face hub."""
    data_dir_digest: str | None = field(default=None, metadata=LATER)
    """What those files hold; the command finds it out."""
    revision: str | None = field(default=None, metadata=LATER)
    """Of jinzhuoran/RWKU, on the hub: a branch, a tag or a commit. None: the newest; the row says which."""
    forget_split: str = "targets"
    """What to call it in the results."""
    subjects: tuple[str, ...] = ()
    """Who is to be forgotten; empty: the first `num_targets` of `forget_target`."""
    num_targets: Annotated[int, Ge(1)] = 1
    """So many are forgotten together, and the passages of as many others are kept."""
    told_passages: Annotated[int, Ge(1)] | None = field(default=None, metadata=LATER)
    """Zero-shot: so many passages about each target, which the model itself writes before anything is unlearned, are
    forgotten in place of the data set's. None: the data set's."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Files it reads."""
        return ("forget_target", "train_original_passage", *PROBES.values(), "utility_general", "utility_factuality")

    def load(self) -> Benchmark:
        """Read what is about the targets. Raises UserError where a part is missing, or has nothing of them.

        What is kept while training are passages about the targets that come after them. The sets for reasoning,
        truthfulness and fluency have scores of their own kinds, and are not asked.
        """
        everyone = [row.target for row in self._read(_Target, "forget_target")]
        forgotten = self.subjects or tuple(everyone[: self.num_targets])
        others = [name for name in everyone if name not in forgotten][: len(forgotten)]
        passages = self._read(_Passage, "train_original_passage")
        forget, retain = (
            [Item(question="", answer=row.text.strip(), form="passage") for row in passages if row.subject in names]
            for names in (forgotten, others)
        )
        for names, found in ((forgotten, forget), (others, retain)):
            if not found:
                named = ", ".join(names) or "anyone else"
                raise UserError("benchmark.subjects", f"train_original_passage has none about {named}; choose others")
        say_repeats(forget, retain)
        evaluation = {split: self._probes(part, forgotten) for split, part in PROBES.items()} | {
            "rwku_general": [row.item(row.task.replace("_", " ")) for row in self._read(_Choice, "utility_general")],
            "rwku_factuality": [
                Item(question=f"{QUESTION}\n{row.question}", answer=row.answers[0])
                for row in self._read(_Fact, "utility_factuality")
            ],
        }
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=retain,
            evaluation=evaluation,
            told=[TELL.format(name=name) for name in forgotten] * (self.told_passages or 0),
        )

    def hub(self, part: str) -> HubPart:
        """Where a part lies without a folder."""
        split = "train" if part in ("forget_target", "train_original_passage") else "test"
        return HubPart(HUB_ID, part, split, self.revision)

    def _probes(self, part: str, forgotten: tuple[str, ...]) -> list[Item]:
        instruction = CLOZE if part.endswith("level1") else QUESTION
        rows = [row for row in self._read(_Probe, part) if row.subject in forgotten]
        if not rows:
            raise UserError("benchmark.subjects", f"{part} asks nothing about {', '.join(forgotten)}; choose others")
        return [Item(question=f"{instruction}\n{row.asked}", answer=row.answer) for row in rows]

    def _read(self, kind: type[Kind], part: str) -> list[Kind]:
        return read_rows(kind, part, self.data_dir, self.hub(part))


@dataclass(frozen=True, kw_only=True)
class _Target:
    target: Text


@dataclass(frozen=True, kw_only=True)
class _Passage(PassageRow):
    subject: Text


@dataclass(frozen=True, kw_only=True)
class _Probe:
    subject: Text
    query: Text
    answer: Text
    type: Text

    @property
    def asked(self) -> str:
        """In-context learning brings examples of its own, which end in the question."""
        return self.query if self.type == "incontext learning" else f"Question: {self.query}"


@dataclass(frozen=True, kw_only=True)
class _Fact:
    question: Text
    answers: Texts


@dataclass(frozen=True, kw_only=True)
class _Choice(ChoiceRow):
    task: Text
