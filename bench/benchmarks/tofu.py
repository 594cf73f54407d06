"""TOFU (arXiv 2401.06121): 4,000 questions about 200 fictitious authors, from the hub or a local folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from bench.benchmarks.items import Benchmark, Item
from bench.splits import KNOWLEDGE_SPLITS, QUESTION_SPLITS, Split
from grun.errors import UserError

HUB_ID = "locuslab/TOFU"
NUM_ITEMS = 4000
NUM_PERTURBED = 400
NUM_PER_AUTHOR = 20
NUM_FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}


@dataclass(frozen=True, kw_only=True)
class TofuConfig:
    """The real TOFU, whole or cut to its last authors."""

    name: Literal["tofu"] = "tofu"
    splits: ClassVar[Mapping[str, Split]] = {**QUESTION_SPLITS, **KNOWLEDGE_SPLITS}
    objectives: ClassVar[tuple[str, ...]] = ("log10_forget_quality", "model_utility")
    headlines: ClassVar[tuple[str, ...]] = (
        *objectives,
        "forget_rouge_l_recall",
        "retain_rouge_l_recall",
        "forget_relearned_rouge_l_recall",
    )
    forget_split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """The last 40, 200 or 400 of the 4,000 questions; the retain set is the rest."""
    data_dir: str | None = None
    """Folder with TOFU's own JSON files; None: locuslab/TOFU from the Hugging Face hub."""
    num_items: Annotated[int, Ge(41), Le(NUM_ITEMS)] | None = None
    """Keep only the last so many of the 4,000 questions. None: all."""

    def load(self) -> Benchmark:
        """Read and cut the splits. Raises UserError where a file, or a usable cut, is missing.

        Whole, the retain split is evaluated on TOFU's own 400 `retain_perturbed` items (the first 400 of the
        4,000). Cut, it is evaluated on every kept item that TOFU has wrong answers for: `forget10_perturbed`
        has them for the last 400. Where these are all forgotten, a cut keeps the first items instead as its retain
        set. Of what is cut off, as many items as are forgotten are the holdout set.
        """
        num_forget = NUM_FORGET[self.forget_split]
        num_items = NUM_ITEMS if self.num_items is None else self.num_items
        if num_items <= num_forget:
            raise UserError(
                "benchmark.num_items",
                f"{num_items} leaves no retain items beside {self.forget_split}'s {num_forget}; "
                f"use more than {num_forget}",
            )
        full = [Item(question=row["question"], answer=row["answer"]) for row in self._read("full")]
        last_perturbed = [_item(row) for row in self._read("forget10_perturbed")]
        first_perturbed = [_item(row) for row in self._read("retain_perturbed")]
        if (len(full), len(last_perturbed), len(first_perturbed)) != (NUM_ITEMS, NUM_PERTURBED, NUM_PERTURBED):
            raise UserError(
                "benchmark.data_dir",
                f"expected {NUM_ITEMS} rows in full and {NUM_PERTURBED} in forget10_perturbed and "
                f"retain_perturbed, found {len(full)}, {len(last_perturbed)}, {len(first_perturbed)}; "
                "download TOFU again",
            )
        first_kept = NUM_ITEMS - num_items
        num_retain = num_items - num_forget
        retain_set = full[first_kept : NUM_ITEMS - num_forget]
        retain_evaluation = first_perturbed[first_kept:]
        if self.num_items is not None:
            retain_evaluation += last_perturbed[max(0, NUM_PERTURBED - num_items) : NUM_PERTURBED - num_forget]
        if not retain_evaluation:
            retain_set, retain_evaluation = full[:num_retain], first_perturbed[:num_retain]
            first_kept = 0
        knowledge = {name: self._knowledge(name) for name in ("real_authors", "world_facts")}
        return Benchmark(
            name=self.name,
            forget_split=self.forget_split,
            forget_set=last_perturbed[-num_forget:],
            retain_set=retain_set,
            knowledge_set=[item for items in knowledge.values() for item in items],
            evaluation={
                "forget": last_perturbed[-num_forget:],
                "retain": retain_evaluation,
                **knowledge,
                **({"holdout": first_perturbed[:num_forget]} if first_kept >= NUM_PERTURBED else {}),
            },
            requests=[
                last_perturbed[first : first + NUM_PER_AUTHOR]
                for first in range(NUM_PERTURBED - num_forget, NUM_PERTURBED, NUM_PER_AUTHOR)
            ],
        )

    def _knowledge(self, split: str) -> list[Item]:
        return [_item(row) for row in self._read(f"{split}_perturbed")]

    def _read(self, split: str) -> Sequence[dict[str, Any]]:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said here, in one line
        if self.data_dir is None:
            try:
                return datasets.load_dataset(HUB_ID, split, split="train").to_list()
            except (OSError, ValueError) as error:
                raise UserError(
                    "benchmark.data_dir",
                    f"{HUB_ID} ({split}) could not be read from the hub ({type(error).__name__}); "
                    "go online, or give a folder with TOFU's JSON files",
                ) from error
        file = Path(self.data_dir) / f"{split}.json"
        if not file.is_file():
            raise UserError("benchmark.data_dir", f"{file} is missing; give the folder that holds TOFU's JSON files")
        if file.stat().st_size == 0:
            raise UserError("benchmark.data_dir", f"{file} is empty; download TOFU again")
        try:
            return datasets.Dataset.from_json(str(file), keep_in_memory=True).to_list()
        except Exception as error:  # the datasets library raises many kinds for unreadable files
            raise UserError("benchmark.data_dir", f"{file} is not JSON lines ({type(error).__name__})") from error


def _item(row: dict[str, Any]) -> Item:
    return Item(
        question=row["question"],
        answer=row["answer"],
        paraphrased_answer=row.get("paraphrased_answer"),
        paraphrased_question=row.get("paraphrased_question"),
        perturbed_answers=tuple(row["perturbed_answer"]),
    )
