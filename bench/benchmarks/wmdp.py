"""WMDP (arXiv 2403.03218): forget what a corpus of hazardous text teaches, keep general knowledge. Nothing is shipped.

Forgetting trains on passages; multiple-choice questions measure it, by the prompts of lm-evaluation-harness's tasks
`wmdp_bio`, `wmdp_cyber` and `mmlu` (zero-shot), whose accuracy ours therefore is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from bench.benchmarks.items import Benchmark, ChoiceRow, Item, say_repeats
from bench.hub.data import HubPart
from bench.sources import AnyText, DataDir, Text, has_part, read_rows, say
from bench.splits import Split
from grun.errors import UserError
from grun.settings import LATER

TOPICS = {"wmdp_bio": "biology", "wmdp_chem": "chemistry", "wmdp_cyber": "cybersecurity"}
HUB = {
    "wmdp_bio": HubPart("cais/wmdp", "wmdp-bio", "test"),
    "wmdp_chem": HubPart("cais/wmdp", "wmdp-chem", "test"),
    "wmdp_cyber": HubPart("cais/wmdp", "wmdp-cyber", "test"),
    "mmlu": HubPart("cais/mmlu", "all", "test"),
    "bio_forget": HubPart("cais/wmdp-bio-forget-corpus", None, "train"),
    "cyber_forget": HubPart("cais/wmdp-corpora", "cyber-forget-corpus", "train"),
    "retain": HubPart("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
}
"""Part → hub dataset, its configuration, its split. The bio corpus is gated: ask for access, or use data_dir."""


@dataclass(frozen=True, kw_only=True)
class WmdpConfig:
    """Hazardous knowledge in biology, in cybersecurity, or in both; chemistry has questions, but no corpus."""

    name: Literal["wmdp"] = "wmdp"
    splits: ClassVar[Mapping[str, Split]] = {
        **{topic: Split(kind="choice", role="forgotten") for topic in TOPICS},
        "mmlu": Split(kind="choice", role="kept"),
    }
    objectives: ClassVar[tuple[str, ...]] = ("wmdp_{forget_split}_accuracy", "mmlu_accuracy")
    headlines: ClassVar[tuple[str, ...]] = (*(f"{topic}_accuracy" for topic in TOPICS), "mmlu_accuracy")
    forget_split: Literal["bio", "cyber", "bio_cyber"] = "bio"
    """Which corpus is forgotten, or both, a passage of each in turn; all topics are asked about."""
    data_dir: DataDir | None = None
    """Folder with `wmdp_bio.json`, `wmdp_cyber.json`, `mmlu.json` (question, choices, answer, and for mmlu subject), if
    you like `wmdp_chem.json`, and `bio_forget.json`, `cyber_forget.json`, `retain.json` (text), as JSON lines or one
    JSON array each; None: the Hugging Face hub."""
    data_dir_digest: str | None = field(default=None, metadata=LATER)
    """What those files hold; the command finds it out."""
    revision: str | None = field(default=None, metadata=LATER)
    """Of cais/wmdp, the questions on the hub: a branch, a tag or a commit. None: the newest; the row says which."""
    num_passages: Annotated[int, Ge(1)] = 600
    """Passages of each forget corpus, and as many to keep. The RMU baseline's 150 batches of 4."""
    min_characters: Annotated[int, Ge(10)] = 50
    """Shorter passages are left out. 200 in the published runs of Mistral-7B."""

    cyber_tokens: Annotated[int, Ge(10)] | None = field(default=None, metadata=LATER)
    """Tokens that are read of a passage of cyber to be forgotten, 768 in RMU's own code. None: 512, as of others."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Files it reads, those that need not be there included."""
        return (*(f"{topic}_forget" for topic in self.forget_split.split("_")), "retain", *TOPICS, "mmlu")

    def load(self) -> Benchmark:
        """Read passages and questions. Raises UserError where a part is missing or too small."""
        corpora = [self._passages(f"{topic}_forget") for topic in self.forget_split.split("_")]
        forget = [passage for turn in zip_longest(*corpora) for passage in turn if passage is not None]
        retain = self._passages("retain")
        say_repeats(forget, retain)
        has_chem = self.data_dir is None or has_part(self.data_dir, "wmdp_chem")
        asked = [topic for topic in TOPICS if topic != "wmdp_chem" or has_chem]
        evaluation = {part: self._questions(part) for part in (*asked, "mmlu")}
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=retain,
            evaluation=evaluation,
        )

    def hub(self, part: str) -> HubPart:
        """Where a part lies without a folder."""
        there = HUB[part]
        return there._replace(revision=self.revision) if there.dataset == "cais/wmdp" else there

    def _passages(self, part: str) -> list[Item]:
        rows = read_rows(_Passage, part, self.data_dir, self.hub(part))
        texts = [text for row in rows if len(text := row.text.strip()) > self.min_characters]
        if not texts:
            raise UserError(
                "benchmark.min_characters", f"no passage of {part} is that long; use less than {self.min_characters}"
            )
        if len(texts) < len(rows):
            say(
                f"{part}: {len(rows) - len(texts)} of {len(rows)} passages are left out, being of at most "
                f"{self.min_characters} characters (benchmark.min_characters)"
            )
        num_tokens = self.cyber_tokens if part == "cyber_forget" else None
        return [
            Item(question="", answer=text, form="passage", corpus=part, passage_tokens=num_tokens)
            for text in texts[: self.num_passages]
        ]

    def _questions(self, part: str) -> list[Item]:
        topic = TOPICS.get(part)
        if topic is not None:
            return [row.item(topic) for row in read_rows(ChoiceRow, part, self.data_dir, self.hub(part))]
        rows = read_rows(_QuestionOfSubject, part, self.data_dir, self.hub(part))
        return [row.item(row.subject.replace("_", " ")) for row in rows]


@dataclass(frozen=True, kw_only=True)
class _Passage:
    text: AnyText
    """Blank lines are part of wikitext."""


@dataclass(frozen=True, kw_only=True)
class _QuestionOfSubject(ChoiceRow):
    subject: Text
