"""TOFU (arXiv 2401.06121): 4,000 questions about 200 fictitious authors, from the hub or a local folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from bench.benchmarks.items import Benchmark, Item, QuestionRow, numbered_requests, say_repeats
from bench.hub.data import HubPart
from bench.sources import DataDir, MaybeText, Text, Texts, has_part, read_rows
from bench.splits import KNOWLEDGE_SPLITS, QUESTION_HEADLINES, QUESTION_SPLITS, Split
from grun.errors import UserError
from grun.settings import LATER

HUB_ID = "locuslab/TOFU"
NUM_ITEMS = 4000
NUM_PERTURBED = 400
NUM_PER_AUTHOR = 20
NUM_AUTHORS, NUM_KEPT_AUTHORS, NUM_OTHER_AUTHORS = 200, 60, 40
"""Of all, of those that are kept beside as many requests as are wanted, and of those that are in no set then."""
NUM_FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}
KEPT = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""TOFU's name of what is left beside a forget split, part of the name of a model trained on it."""
KNOWLEDGE = ("real_authors", "world_facts")


@dataclass(frozen=True, kw_only=True)
class TofuConfig:
    """The real TOFU, whole or cut to its last authors."""

    name: Literal["tofu"] = "tofu"
    splits: ClassVar[Mapping[str, Split]] = {**QUESTION_SPLITS, **KNOWLEDGE_SPLITS}
    objectives: ClassVar[tuple[str, ...]] = ("log10_forget_quality", "model_utility")
    headlines: ClassVar[tuple[str, ...]] = (*objectives, *QUESTION_HEADLINES)
    forget_split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """The last 40, 200 or 400 of the 4,000 questions; the retain set is the rest."""
    data_dir: DataDir | None = None
    """Folder with TOFU's own JSON files; None: locuslab/TOFU from the Hugging Face hub."""
    data_dir_digest: str | None = field(default=None, metadata=LATER)
    """What those files hold; the command finds it out."""
    revision: str | None = field(default=None, metadata=LATER)
    """Of locuslab/TOFU, on the hub: a branch, a tag or a commit. None: the newest; the row says which."""
    num_items: Annotated[int, Ge(41), Le(NUM_ITEMS)] | None = None
    """Keep only the last so many of the 4,000 questions. None: all."""
    holdout: bool = True
    """Also ask questions that no model has seen, for membership scores: TOFU's own (`holdout10` beside forget10), or,
    of a cut from a folder without it, those that are cut off (which a model taught all of TOFU has seen)."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Files it reads, those that need not be there included."""
        knowledge = tuple(f"{name}_perturbed" for name in KNOWLEDGE)
        return ("full", "retain_perturbed", "forget10_perturbed", *knowledge, self._strangers)

    def load(self) -> Benchmark:
        """Read and cut the splits. Raises UserError where a file, or a usable cut, is missing.

        Whole, the retain split is evaluated on TOFU's own 400 `retain_perturbed` items (the first 400 of the
        4,000). Cut, it is evaluated on every kept item that TOFU has wrong answers for: `forget10_perturbed`
        has them for the last 400. Where these are all forgotten, a cut keeps the first items instead as its retain
        set. Where TOFU's own holdout set is not there, it is as many of the items cut off as are forgotten.
        """
        num_forget, num_items = NUM_FORGET[self.forget_split], self.num_items or NUM_ITEMS
        if num_items <= num_forget:
            raise UserError(
                "benchmark.num_items",
                f"{num_items} leaves no retain items beside {self.forget_split}'s {num_forget}; "
                f"use more than {num_forget}",
            )
        full = self._read(QuestionRow, "full", NUM_ITEMS)
        first, last = (
            self._read(_PerturbedRow, part, NUM_PERTURBED) for part in ("retain_perturbed", "forget10_perturbed")
        )
        first_kept = NUM_ITEMS - num_items
        retain_set = full[first_kept : NUM_ITEMS - num_forget]
        retain_evaluation = first[first_kept:]
        if self.num_items is not None:
            retain_evaluation += last[max(0, NUM_PERTURBED - num_items) : NUM_PERTURBED - num_forget]
        if not retain_evaluation:
            num_retain = num_items - num_forget
            retain_set, retain_evaluation, first_kept = full[:num_retain], first[:num_retain], 0
        forget = last[-num_forget:]
        knowledge = {name: self._read(_KnowledgeRow, f"{name}_perturbed") for name in KNOWLEDGE}
        cut_off = first[:num_forget] if first_kept >= NUM_PERTURBED else []
        holdout = (self._own_holdout() or cut_off) if self.holdout else []
        say_repeats(forget, retain_set, holdout)
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=retain_set,
            evaluation={
                "forget": forget,
                "retain": retain_evaluation,
                **knowledge,
                **({"holdout": holdout} if holdout else {}),
            },
            requests=numbered_requests(forget, NUM_PER_AUTHOR),
        )

    def load_authors(self, num_requests: int) -> Benchmark:
        """All of TOFU, whatever `forget_split` and `num_items` say: the last authors are a request each, the first 60
        are the retain set, and the 40 after these, in no set at all, the split `holdout`.

        A question has its other wording where TOFU has one: those of the first 20 authors and of the last 20.
        Raises UserError where there are not so many other authors, or as `load`.
        """
        most = NUM_AUTHORS - NUM_KEPT_AUTHORS - NUM_OTHER_AUTHORS
        if num_requests > most:
            raise UserError("num_requests", f"{num_requests}, but TOFU leaves {most} beside those to be kept")
        first, last = (
            self._read(_PerturbedRow, part, NUM_PERTURBED) for part in ("retain_perturbed", "forget10_perturbed")
        )
        full = [*first, *self._read(QuestionRow, "full", NUM_ITEMS)[NUM_PERTURBED:-NUM_PERTURBED], *last]
        forget = full[-num_requests * NUM_PER_AUTHOR :]
        kept = NUM_KEPT_AUTHORS * NUM_PER_AUTHOR
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=full[:kept],
            evaluation={
                "forget": forget,
                **{name: self._read(_KnowledgeRow, f"{name}_perturbed") for name in KNOWLEDGE},
                "holdout": full[kept : kept + NUM_OTHER_AUTHORS * NUM_PER_AUTHOR],
            },
            requests=numbered_requests(forget, NUM_PER_AUTHOR),
        )

    def hub(self, part: str) -> HubPart:
        """Where a part lies without a folder."""
        return HubPart(HUB_ID, part, "train", self.revision)

    def check_retain_model(self, model: str | None) -> None:
        """Raises UserError where a model says in its name that it was trained beside another forget split."""
        kept, name = KEPT[self.forget_split], Path(model or "").name
        for other in KEPT.values():
            if model is not None and other in name and kept not in name:
                raise UserError(
                    "model.retain_model",
                    f"{model} was trained on {other}, and {self.forget_split} leaves {kept}; "
                    f"use {model.replace(other, kept)}",
                )

    @property
    def _strangers(self) -> str:
        return self.forget_split.replace("forget", "holdout")

    def _own_holdout(self) -> list[Item]:
        """None where the folder has none, as TOFU's first release."""
        is_there = self.data_dir is None or has_part(self.data_dir, self._strangers)
        return self._read(QuestionRow, self._strangers) if is_there else []

    def _read(self, kind: type[QuestionRow], part: str, expected: int | None = None) -> list[Item]:
        rows = read_rows(kind, part, self.data_dir, self.hub(part))
        if expected not in (None, len(rows)):
            raise UserError(
                "benchmark.data_dir", f"expected {expected} rows in {part}, found {len(rows)}; download TOFU again"
            )
        return [row.item for row in rows]


@dataclass(frozen=True, kw_only=True)
class _KnowledgeRow(QuestionRow):
    perturbed_answer: Texts

    @property
    def item(self) -> Item:
        """With wrong answers."""
        return replace(super().item, perturbed_answers=tuple(self.perturbed_answer))


@dataclass(frozen=True, kw_only=True)
class _PerturbedRow(_KnowledgeRow):
    paraphrased_answer: Text
    paraphrased_question: MaybeText = None

    @property
    def item(self) -> Item:
        """With other words for both."""
        said, asked = self.paraphrased_answer, self.paraphrased_question
        return replace(super().item, paraphrased_answer=said, paraphrased_question=asked)
