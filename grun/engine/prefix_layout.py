"""What a prefix cache consists of: where everything stands, and the shard files it is written to.

Shapes: M layers with keys and values, from the first one kept.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import save_file
from torch import Tensor

from grun.data import Example

INDEX = "index.json"
SHARD_PROMPTS = 32


class CannotServe(Exception):
    """This model, or this machine, cannot use a prefix cache; `str()` says why."""


class Layout:
    """Where everything stands: prompts longest first, each followed by its examples."""

    def __init__(self, examples: Sequence[Example], whole_prompts: bool) -> None:
        self.whole_prompts = whole_prompts
        unique = sorted(set(examples), key=lambda e: (-len(e.prompt_ids), e.prompt_ids, e.answer_ids))
        self.examples = unique
        self.example_row = {example: row for row, example in enumerate(unique)}
        num_examples = Counter(example.prompt_ids for example in unique)
        self.checked = unique[:2]
        """Examples whose nll under the untouched model is kept, to see that a cache says the same."""
        self.prompts = list(num_examples)
        self.prompt_row = {prompt: row for row, prompt in enumerate(self.prompts)}
        self.first_example = [0, *accumulate(num_examples.values())]
        self.kv_lengths = [len(prompt) - (0 if whole_prompts else 1) for prompt in self.prompts]
        count = len(self.prompts)
        self.shards = [slice(n, min(n + SHARD_PROMPTS, count)) for n in range(0, count, SHARD_PROMPTS)]
        """Of each shard, whose prompts it holds."""

    def examples_of(self, shard: slice) -> list[Example]:
        """Those of its prompts."""
        return self.examples[self.first_example[shard.start] : self.first_example[shard.stop]]


def write_shard(file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write it, and wait for the disk. Returns the index's entry of it."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
    status = file.stat()
    return {
        "file": file.name,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "xxh3": _file_hash(file),
    }


def check_shard(file: Path, recorded: dict[str, Any]) -> None:
    """Raises ValueError where a shard is not what was written: by size, and by content if it was touched since."""
    status = file.stat()
    if status.st_size != recorded["size"]:
        raise ValueError(f"{file} is truncated")
    if status.st_mtime_ns != recorded["mtime_ns"] and _file_hash(file) != recorded["xxh3"]:
        raise ValueError(f"{file} is damaged")


def _file_hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest()
