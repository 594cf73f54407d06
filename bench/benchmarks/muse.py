"""MUSE (arXiv 2407.06460): forget news, or books, that a model has read; its own data, from the hub or a folder.

Six ways to look at what is left: text given word for word, questions about it, whether it can be told that the model
has read it; what is kept; larger sets to be forgotten (`scal`), and several one after another (`sust`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from bench.benchmarks.items import Benchmark, Item, PassageRow, QuestionRow, say_repeats
from bench.hub.data import HubPart
from bench.sources import DataDir, Kind, Text, read_rows
from bench.splits import Split
from grun.settings import LATER

FOLDS = ("forget_1", "forget_2", "forget_3", "forget_4")
KNOWMEM_TOKENS, VERBMEM_TOKENS = 32, 128
"""What is generated of an answer, and of the text that follows a prompt; of that text, no more is compared with it."""
KNOWMEM_ENDS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends, in front of another question of the model's own."""


@dataclass(frozen=True, kw_only=True)
class MuseConfig:
    """What two news outlets wrote, or the Harry Potter books."""

    name: Literal["muse"] = "muse"
    splits: ClassVar[Mapping[str, Split]] = {
        "forget_verbmem": Split(kind="passage", role="forgotten"),
        "forget_knowmem": Split(kind="text", role="forgotten"),
        "retain_knowmem": Split(kind="text", role="kept", in_utility=True),
        "forget_whole": Split(kind="whole", role="forgotten", strangers="holdout_whole"),
        "holdout_whole": Split(kind="whole", role="stranger"),
        "forget_sust": Split(kind="passage", role="forgotten"),
    }
    objectives: ClassVar[tuple[str, ...]] = ("forget_knowmem_rouge_l_f1", "retain_knowmem_rouge_l_f1")
    headlines: ClassVar[tuple[str, ...]] = (
        "forget_verbmem_rouge_l_f1",
        *objectives,
        "privleak",
        "forget_verbmem_extraction_strength",
    )
    corpus: Literal["news", "books"] = "news"
    """Which of the two released data sets."""
    data_dir: DataDir | None = None
    """Folder in the data set's own layout, a JSON array or JSON lines each: `raw/forget` and `raw/retain1` (text),
    `verbmem/forget` (prompt, gt), `knowmem/forget_qa`, `forget_qa_icl`, `retain_qa` and `retain_qa_icl` (question,
    answer), `privleak/forget` and `privleak/holdout` (text), and for the folds `scal/forget_1` to `4` and `sust/` the
    same; None: muse-bench/MUSE-News or MUSE-Books on the Hugging Face hub."""
    data_dir_digest: str | None = field(default=None, metadata=LATER)
    """What those files hold; the command finds it out."""
    revision: str | None = field(default=None, metadata=LATER)
    """Of the data set on the hub: a branch, a tag or a commit. None: the newest; the row says which."""
    forget_split: Literal["forget", "scal_1", "scal_2", "scal_3", "scal_4", "sust"] = "forget"
    """What is forgotten: the forget set; one of four that grow, the first being it; or the four parts that are asked to
    be forgotten one after another, as requests of `grun-bench sequential`."""
    piece_characters: Annotated[int, Ge(100)] = 1600
    """Texts are cut between words into passages of about so many characters; of each, no more than 512 tokens are
    trained on."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Files it reads."""
        asked = (
            "verbmem/forget",
            *(f"knowmem/{side}_qa{icl}" for side in ("forget", "retain") for icl in ("", "_icl")),
        )
        return (*map("/".join, self._forgotten()), "raw/retain1", *asked, "privleak/forget", "privleak/holdout")

    def load(self) -> Benchmark:
        """Read texts and questions. Raises UserError where a part is missing or is something else."""
        folds = {split: self._passages(part, split) for part, split in self._forgotten()}
        forget = [item for fold in folds.values() for item in fold]
        retain = self._passages("raw", "retain1")
        say_repeats(forget, retain)
        evaluation: dict[str, Sequence[Item]] = {
            "forget_verbmem": [
                Item(question=row.prompt, answer=row.gt, form="excerpt", max_new_tokens=VERBMEM_TOKENS)
                for row in self._read(_Excerpt, "verbmem", "forget")
            ],
            "forget_knowmem": self._questions("forget"),
            "retain_knowmem": self._questions("retain"),
            "forget_whole": self._wholes("forget"),
            "holdout_whole": self._wholes("holdout"),
        }
        if len(folds) > 1:
            evaluation["forget_sust"] = forget
        return Benchmark(
            config=self,
            forget_set=forget,
            retain_set=retain,
            evaluation=evaluation,
            requests=folds if len(folds) > 1 else {},
        )

    def hub(self, part: str) -> HubPart:
        """Where a part lies without a folder."""
        configuration, split = part.split("/")
        return HubPart(f"muse-bench/MUSE-{self.corpus.title()}", configuration, split, self.revision)

    def _forgotten(self) -> list[tuple[str, str]]:
        """(part, split) of what is to be forgotten, in the order in which it is asked for."""
        if self.forget_split == "sust":
            return [("sust", fold) for fold in FOLDS]
        if self.forget_split == "forget":
            return [("raw", "forget")]
        return [("scal", self.forget_split.replace("scal", "forget"))]

    def _passages(self, part: str, split: str) -> list[Item]:
        return [
            Item(question="", answer=piece, form="passage")
            for row in self._read(PassageRow, part, split)
            for piece in pieces(row.text, self.piece_characters)
        ]

    def _wholes(self, split: str) -> list[Item]:
        return [Item(question="", answer=row.text, form="whole") for row in self._read(PassageRow, "privleak", split)]

    def _questions(self, side: str) -> list[Item]:
        """Asked behind examples that have nothing to do with them, as models that were never taught to answer need."""
        examples = tuple((row.question, row.answer) for row in self._read(QuestionRow, "knowmem", f"{side}_qa_icl"))
        asked = self._read(QuestionRow, "knowmem", f"{side}_qa")
        return [replace(r.item, examples=examples, max_new_tokens=KNOWMEM_TOKENS, ends=KNOWMEM_ENDS) for r in asked]

    def _read(self, kind: type[Kind], part: str, split: str) -> list[Kind]:
        file = f"{part}/{split}"
        return read_rows(kind, file, self.data_dir, self.hub(file))


def pieces(text: str, characters: int) -> list[str]:
    """A text cut between words, or anywhere where there are none. The last piece has up to a quarter more, so that no
    cut leaves next to nothing."""
    found, rest = [], text.strip()
    while len(rest) > 1.25 * characters:
        cut = max(rest.rfind(" ", 1, characters + 1), 0) or characters
        found.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*found, rest]


@dataclass(frozen=True, kw_only=True)
class _Excerpt:
    prompt: Text
    gt: Text
