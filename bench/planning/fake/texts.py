"""What stands in for a tokenizer and for a benchmark that are not read: only lengths count."""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from bench.benchmarks import BenchmarkConfig, LocalBenchmark
from bench.benchmarks.items import Benchmark
from bench.planning.facts import BENCHMARKS

LETTERS = 8
"""Of a word, a token for so many begun; every other sign is one. On TOFU that is 2 % less than by SmolLM2's
tokenizer: 9 % less of the questions, 2 % more of the answers."""
PIECES = re.compile(rf"\w{{1,{LETTERS}}}|[^\w\s]")
LONGEST_SHARE = 0.1
"""Of made-up texts, those that are as long as the longest; the rest are alike, so that the mean is right."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Of a `transformers` tokenizer what prompts need, for a vocabulary of any size."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_id: int
    chat_template: None = None
    eos_token: str = "</s>"
    pad_token_id: int = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        """`input_ids`."""
        bos = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return SimpleNamespace(input_ids=[*bos, *_ids(text, self.vocab_size)])

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """A word a token."""
        return "word " * len(token_ids)


@lru_cache(maxsize=8)  # a question is read again with each of its choices
def _ids(text: str, vocab_size: int) -> Sequence[int]:
    return list(map(_id, PIECES.findall(text), repeat(vocab_size)))


@cache
def _id(piece: str, vocab_size: int) -> int:
    return zlib.crc32(piece.encode()) % vocab_size


def benchmark_of(config: BenchmarkConfig) -> tuple[Benchmark, bool]:
    """The benchmark itself, where it is in a folder or made here; else made-up texts as long as its own, by its own
    rules: what is on the hub stays there. Returns whether they are made up.

    Raises UserError where it can neither be read nor made up.
    """
    parts = BENCHMARKS.get(config.name)
    if parts is None or not isinstance(config, LocalBenchmark) or config.data_dir is not None:
        return config.load(), False
    with TemporaryDirectory(prefix="grun-bench-plan-") as folder:
        for part, facts in parts.items():
            rows = "\n".join(json.dumps(row) for row in _rows(part, facts))
            Path(folder, f"{part}.json").write_text(rows)
        return replace(replace(config, data_dir=folder).load(), config=config), True


def _rows(part: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of one part. facts: see benchmarks.yaml."""
    lengths = {name: each for name, each in facts.items() if name not in ("rows", "wrong")}
    several = {"perturbed_answer": facts.get("wrong", 1), "choices": 4}
    prefix = 100 + zlib.crc32(part.encode()) % 900
    for number in range(facts["rows"]):
        row: dict[str, Any] = {name: _text(prefix, number, *each) for name, each in lengths.items()}
        for name, count in several.items():
            if name in row:
                row[name] = [row[name]] * count
        if "choices" in row:
            row |= {"answer": number % 4, "subject": "words"}
        yield row


def _text(prefix: int, number: int, mean: float, longest: int) -> str:
    """So many words, the first of them the part's and the row's own, of no more than LETTERS."""
    is_long = number % round(1 / LONGEST_SHARE) == 0
    length = longest if is_long else round((mean - LONGEST_SHARE * longest) / (1 - LONGEST_SHARE))
    return " ".join([f"{prefix}{number:05d}", *["word"] * (length - 1)])
