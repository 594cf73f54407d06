"""WMDP (arXiv 2403.03218): forget what a corpus of hazardous text teaches, keep general knowledge. Nothing is shipped.

Forgetting trains on passages; multiple-choice questions measure it, by the prompts of lm-evaluation-harness's tasks
`wmdp_bio`, `wmdp_cyber` and `mmlu` (zero-shot), whose accuracy ours therefore is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from bench.benchmarks.items import Benchmark, Item
from bench.splits import Split
from grun.errors import UserError

TOPICS = {"wmdp_bio": "biology", "wmdp_cyber": "cybersecurity"}
LETTERS = "ABCD"
HUB = {
    "wmdp_bio": ("cais/wmdp", "wmdp-bio", "test"),
    "wmdp_cyber": ("cais/wmdp", "wmdp-cyber", "test"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "bio_forget": ("cais/wmdp-bio-forget-corpus", None, "train"),
    "cyber_forget": ("cais/wmdp-corpora", "cyber-forget-corpus", "train"),
    "retain": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
}
"""Part → hub dataset, its configuration, its split. The bio corpus is gated: ask for access, or use data_dir."""


@dataclass(frozen=True, kw_only=True)
class WmdpConfig:
    """Hazardous knowledge in biology or in cybersecurity."""

    name: Literal["wmdp"] = "wmdp"
    splits: ClassVar[Mapping[str, Split]] = {
        "wmdp_bio": Split(kind="choice", role="forgotten"),
        "wmdp_cyber": Split(kind="choice", role="forgotten"),
        "mmlu": Split(kind="choice", role="kept"),
    }
    objectives: ClassVar[tuple[str, ...]] = ("wmdp_{forget_split}_accuracy", "mmlu_accuracy")
    headlines: ClassVar[tuple[str, ...]] = ("wmdp_bio_accuracy", "wmdp_cyber_accuracy", "mmlu_accuracy")
    forget_split: Literal["bio", "cyber"] = "bio"
    """Which corpus is forgotten; both are asked about."""
    data_dir: str | None = None
    """Folder with `wmdp_bio.json`, `wmdp_cyber.json`, `mmlu.json` (question, choices, answer, and for mmlu subject) and
    `bio_forget.json`, `cyber_forget.json`, `retain.json` (text), as JSON lines; None: the Hugging Face hub."""
    num_passages: Annotated[int, Ge(1)] = 600
    """Passages of the forget corpus, and as many to keep. The RMU baseline's 150 batches of 4."""
    min_characters: Annotated[int, Ge(10)] = 50
    """Shorter passages are left out. 200 in the published runs of Mistral-7B."""

    def load(self) -> Benchmark:
        """Read passages and questions. Raises UserError where a part is missing or too small."""
        forget, retain = (self._passages(part) for part in (f"{self.forget_split}_forget", "retain"))
        evaluation = {part: self._questions(part) for part in ("wmdp_bio", "wmdp_cyber", "mmlu")}
        return Benchmark(
            name=self.name,
            forget_split=self.forget_split,
            forget_set=forget,
            retain_set=retain,
            knowledge_set=[item for items in evaluation.values() for item in items],
            evaluation=evaluation,
        )

    def _passages(self, part: str) -> list[Item]:
        texts = [
            text for row in self._read(part) if len(text := str(row.get("text", "")).strip()) > self.min_characters
        ]
        if not texts:
            raise UserError(
                "benchmark.min_characters", f"no passage of {part} is that long; use less than {self.min_characters}"
            )
        return [Item(question="", answer=text, form="passage") for text in texts[: self.num_passages]]

    def _questions(self, part: str) -> list[Item]:
        rows = self._read(part)
        if not rows:
            raise UserError("benchmark.data_dir", f"{part} holds no question; get it again")
        return [_question(row, TOPICS.get(part) or str(row.get("subject", "")).replace("_", " ")) for row in rows]

    def _read(self, part: str) -> Sequence[dict[str, Any]]:
        if self.data_dir is None:
            return _from_hub(part)
        file = Path(self.data_dir) / f"{part}.json"
        try:
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError:
            raise UserError("benchmark.data_dir", f"{file} cannot be read; give the folder that holds it") from None
        except ValueError as error:
            raise UserError("benchmark.data_dir", f"{file} is not JSON lines ({error})") from None


def _question(row: dict[str, Any], topic: str) -> Item:
    """lm-eval's prompt; the right letter is the answer, the others are the wrong ones."""
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    prompt = (
        f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        f"{row['question'].strip()}\n{choices}\nAnswer:"
    )
    right = LETTERS[int(row["answer"])]
    return Item(
        question=prompt,
        answer=f" {right}",
        perturbed_answers=tuple(f" {letter}" for letter in LETTERS if letter != right),
        form="continuation",
    )


def _from_hub(part: str) -> Sequence[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said here, in one line
    name, configuration, split = HUB[part]
    try:
        return datasets.load_dataset(name, configuration, split=split).to_list()
    except Exception as error:  # offline, gated, renamed: the datasets library raises many kinds
        raise UserError(
            "benchmark.data_dir",
            f"{name} could not be read from the hub ({type(error).__name__}); go online, ask for access where it is "
            "gated, or give a folder",
        ) from error
