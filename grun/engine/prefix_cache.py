"""What a frozen model computes before the first edit, computed once and kept on the node's disk.

The edit sits on a prompt's last token, at the output of some layer. Neither depends on what is trained:

- hidden: the output of the first edited layer, from the edited position on (one state for each answer token), and
- kv: keys and values of the earlier prompt tokens at every layer above it.

So both are constants, shared by every step, trial and process on the node: memory-mapped safetensors, written once
under a lock, named by a hash of all they follow from, checked when opened, evicted when least recently used.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

from grun.data import Example
from grun.engine.prefix_builder import Builder
from grun.engine.prefix_layout import INDEX, CannotServe, Layout, check_shard
from grun.model.forward import Tally

VERSION = 3
"""Raise it when a change here changes what is stored."""
SCRATCH = ".tmp-"
"""Begins the name of a folder in which a cache is being built; its key ends it."""


class PrefixCache:
    """An opened cache of some examples."""

    def __init__(self, layout: Layout, first_layer: int, shards: Iterable[Mapping[str, Tensor]]) -> None:
        """shards: what `Builder.kept` made of each of the layout's."""
        self.first_layer = first_layer
        self._layout = layout
        self._kv: list[Tensor] = []
        self._hidden: list[Tensor] = []
        self.checked: list[tuple[Example, float]] = []
        """Examples, each with its token-summed nll under the untouched model, nats."""
        for tensors, shard in zip(shards, layout.shards, strict=True):
            self.checked += zip(layout.checked, tensors["nll"].tolist(), strict=False)
            self._kv += tensors["kv"].split(layout.kv_lengths[shard])
            self._hidden += tensors["hidden"].split([len(each.answer_ids) for each in layout.examples_of(shard)])

    @classmethod
    def opened(cls, folder: Path, layout: Layout, first_layer: int) -> Self:
        """A finished cache, its shards mapped into memory. Raises where a file is missing or damaged."""
        index = json.loads((folder / INDEX).read_text())
        for shard in index["shards"]:
            check_shard(folder / shard["file"], shard)
        os.utime(folder / INDEX)  # last used now
        return cls(layout, first_layer, (load_file(folder / entry["file"]) for entry in index["shards"]))

    def __contains__(self, example: Example) -> bool:
        return example in self._layout.example_row

    def has_prompts(self, prompts: Sequence[tuple[int, ...]]) -> bool:
        """Whether it holds all of these prompts, whole enough to decode from."""
        return self._layout.whole_prompts and all(prompt in self._layout.prompt_row for prompt in prompts)

    def kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """All that is kept of a prompt's keys and values: [tokens, 2, M, H, d]."""
        return self._kv[self._layout.prompt_row[prompt_ids]]

    def prefix_kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """Keys and values before the edited position, at the layers above the first edited one: [P, 2, M, H, d]."""
        kv = self.kv(prompt_ids)[: len(prompt_ids) - 1]
        return kv[:, :, self.first_layer + 1 :] if self._layout.whole_prompts else kv

    def hidden_at_edit(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """The first edited layer's output at the edited position: [1, D]."""
        return self._hidden[self._layout.first_example[self._layout.prompt_row[prompt_ids]]][:1]

    def hidden(self, example: Example) -> Tensor:
        """The first edited layer's output from the edited position on: [answer tokens, D]."""
        return self._hidden[self._layout.example_row[example]]


@dataclass(frozen=True, kw_only=True)
class PrefixCaching:
    """Where the engine may keep what never changes: in files of this node, for all its processes."""

    root: Path
    """Folder of all prefix caches of this node."""
    max_bytes: int
    """Size of all of them together; the least recently used ones make room."""
    log: Callable[[str], None]
    """Gets one line where the engine cannot be used."""

    def cache_of(self, builder: Builder, weights: Callable[[], str], progress: Tally) -> PrefixCache:
        """What it builds; built if it is not there, or is damaged.

        weights: gives `weights_hash` of its model. Raises CannotServe where the model does not fit the scheme, or the
        cache the disk.
        """
        layout, first_layer, root = builder.layout, builder.first_layer, self.root
        key = _key(builder, weights())
        folder = root / key
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root, key):
            try:
                return PrefixCache.opened(folder, layout, first_layer)
            except (FileNotFoundError, ValueError, KeyError):  # not there, or not what was written
                shutil.rmtree(folder, ignore_errors=True)
            except OSError as error:
                raise CannotServe(f"the prefix cache cannot be read from {root} ({error.strerror})") from error
            scratch = folder.with_name(f"{SCRATCH}{key}")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                builder.build(scratch, self.max_bytes, progress)
                cache = PrefixCache.opened(scratch, layout, first_layer)  # mapped before another may evict it
                os.replace(scratch, folder)
            except OSError as error:
                raise CannotServe(f"the prefix cache cannot be written to {root} ({error.strerror})") from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            _evict(root, keep=key, max_bytes=self.max_bytes)
            return cache


def weights_hash(model: Any) -> str:
    """Hash of every weight, of the model's config and of the library that runs it."""
    import transformers

    digest = xxhash.xxh3_128(f"{transformers.__version__} {type(model).__name__}".encode())
    digest.update(model.config.to_json_string().encode())
    for name, parameter in model.state_dict().items():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(builder: Builder, weights: str) -> str:
    layout = builder.layout
    named = f"{VERSION} {weights} {builder.model.dtype} {builder.first_layer} {layout.whole_prompts}"
    digest = xxhash.xxh3_128(named.encode())
    for example in layout.examples:
        digest.update(json.dumps([example.prompt_ids, example.answer_ids]).encode())
    return digest.hexdigest()


def _lock(root: Path, key: str, *, blocking: bool = True) -> FileLock:
    """Held by who builds or opens a cache."""
    return FileLock(root / f"{key}.lock", blocking=blocking)


def _evict(root: Path, *, keep: str, max_bytes: int) -> None:
    """Delete what ended processes left half built, then the least recently used caches until the rest fit.

    Other processes may build and delete here meanwhile. Who has a cache mapped goes on reading it.
    """
    for scratch in root.glob(f"{SCRATCH}*"):
        with suppress(Timeout), _lock(root, scratch.name.rpartition("-")[2], blocking=False):
            shutil.rmtree(scratch, ignore_errors=True)
    caches = []
    for index in root.glob(f"[!.]*/{INDEX}"):
        with suppress(FileNotFoundError):  # another process deletes it now
            caches.append((index.stat().st_mtime, sum(file.stat().st_size for file in index.parent.iterdir()), index))
    total = sum(size for _, size, _ in caches)
    for _, size, index in sorted(caches):
        if total <= max_bytes:
            return
        if index.parent.name != keep:
            shutil.rmtree(index.parent, ignore_errors=True)
            total -= size
