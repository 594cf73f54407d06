"""What a frozen model computes before the first edit, computed once and kept on the node's disk.

The edit sits on a prompt's last token, at the output of some layer. Neither depends on what is trained:

- hidden: the output of the first edited layer, from the edited position on (one state for each answer token), and
- kv: keys and values of the earlier prompt tokens at every layer above it.

So both are constants, shared by every step, trial and process on the node: memory-mapped safetensors, written once
under a lock, named by a hash of all they follow from, checked when opened, evicted when least recently used.

Shapes: B sequences, P prefix tokens, T tokens from the edited position on, N answer tokens, K layers with keys and
values, H heads, d head size, D hidden size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import xxhash
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from grun.data import Example, answer_labels, length_sorted_batches
from grun.losses import sequence_sum, token_nll
from grun.model.forward import Tally, head_at, new_cache
from grun.model.patching import decoder_layers, output_tensor, patched

VERSION = 1
"""Raise it when a change here changes what is stored."""
SHARD_BYTES = 256 * 2**20
PROMPTS_PER_BATCH = 32
INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class PrefixBatch:
    """Some examples, ready for the layers above `first_layer`."""

    kv_BP2KHd: Tensor
    """Keys and values of the prompt's earlier tokens, left-padded; [B, P, 2, K, H, d]."""
    hidden_BTD: Tensor
    """Output of the first edited layer; the edited position stands first. Right-padded."""
    attention_mask_BS: Tensor
    """1 on tokens, 0 on padding; S = P + T."""
    position_ids_BT: Tensor
    is_token_BT: Tensor
    """bool: T positions that are not padding; each predicts one answer token."""
    label_N: Tensor
    row_N: Tensor

    def __len__(self) -> int:
        return self.hidden_BTD.shape[0]


class CannotServe(Exception):
    """This model, or this machine, cannot use a prefix cache; `str()` says why."""


class PrefixCache:
    """An opened cache of some examples."""

    def __init__(self, folder: Path, layout: _Layout, first_layer: int) -> None:
        """Map the shards of a finished cache into memory. Raises where a file is missing or damaged."""
        index = json.loads((folder / INDEX).read_text())
        for shard in index["shards"]:
            _check(folder / shard["file"], shard)
        os.utime(folder / INDEX)  # last used now
        self.first_layer = first_layer
        self._layout = layout
        self._shards = [load_file(folder / shard["file"]) for shard in index["shards"]]
        self._shard_of_prompt = [number for number, s in enumerate(index["shards"]) for _ in range(s["num_prompts"])]
        first_prompts = [0, *accumulate(shard["num_prompts"] for shard in index["shards"])]
        self._kv_base = [layout.kv_starts[first] for first in first_prompts[:-1]]
        self._hidden_base = [layout.hidden_starts[layout.first_example[first]] for first in first_prompts[:-1]]
        self._nll = torch.cat([shard["nll"] for shard in self._shards]).tolist()

    def __contains__(self, example: Example) -> bool:
        return example in self._layout.example_row

    def has_prompts(self, prompts: Sequence[tuple[int, ...]]) -> bool:
        """Whether it holds all of these prompts, whole enough to decode from."""
        return self._layout.whole_prompts and all(prompt in self._layout.prompt_row for prompt in prompts)

    def reference_nll(self, example: Example) -> float:
        """Token-summed nll of an example's answer under the untouched model, nats."""
        return self._nll[self._layout.example_row[example]]

    def kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """All that is kept of a prompt's keys and values: [tokens, 2, K, H, d]."""
        prompt = self._layout.prompt_row[prompt_ids]
        shard = self._shard_of_prompt[prompt]
        start = self._layout.kv_starts[prompt] - self._kv_base[shard]
        return self._shards[shard]["kv"][start : start + self._layout.kv_lengths[prompt]]

    def prefix_kv(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """Keys and values before the edited position, at the layers above the first edited one: [P, 2, K, H, d]."""
        kv = self.kv(prompt_ids)[: len(prompt_ids) - 1]
        return kv[:, :, self.first_layer + 1 :] if self._layout.whole_prompts else kv

    def hidden_at_edit(self, prompt_ids: tuple[int, ...]) -> Tensor:
        """The first edited layer's output at the edited position: [1, D]."""
        first = self._layout.first_example[self._layout.prompt_row[prompt_ids]]
        return self.hidden(self._layout.examples[first])[:1]

    def hidden(self, example: Example) -> Tensor:
        """The first edited layer's output from the edited position on: [answer tokens, D]."""
        row = self._layout.example_row[example]
        shard = self._shard_of_prompt[self._layout.prompt_row[example.prompt_ids]]
        start = self._layout.hidden_starts[row] - self._hidden_base[shard]
        return self._shards[shard]["hidden"][start : start + len(example.answer_ids)]


class _Layout:
    """Where everything stands: prompts longest first, each followed by its examples."""

    def __init__(self, examples: Sequence[Example], whole_prompts: bool) -> None:
        self.whole_prompts = whole_prompts
        unique = sorted(set(examples), key=lambda e: (-len(e.prompt_ids), e.prompt_ids, e.answer_ids))
        self.examples = unique
        self.example_row = {example: row for row, example in enumerate(unique)}
        self.prompts = list(dict.fromkeys(example.prompt_ids for example in unique))
        self.prompt_row = {prompt: row for row, prompt in enumerate(self.prompts)}
        counts = [0] * len(self.prompts)
        for example in unique:
            counts[self.prompt_row[example.prompt_ids]] += 1
        self.first_example = [0, *accumulate(counts)]
        self.kv_lengths = [len(prompt) - (0 if whole_prompts else 1) for prompt in self.prompts]
        self.kv_starts = [0, *accumulate(self.kv_lengths)]
        self.hidden_starts = [0, *accumulate(len(example.answer_ids) for example in unique)]


def open_or_build(
    model: Any,
    examples: Sequence[Example],
    *,
    first_layer: int,
    whole_prompts: bool,
    weights: str,
    root: Path,
    max_bytes: int,
    progress: Tally,
) -> PrefixCache:
    """The cache of these examples; built if it is not there, or is damaged.

    first_layer: the first edited layer. whole_prompts: keep keys and values of every layer and prompt token, which
    decoding needs, and not only of what training needs. weights: `weights_hash(model)`. root: folder of all caches.
    max_bytes: size of all caches together; the least recently used ones make room.
    Raises CannotServe where the model does not fit the scheme, or the cache the disk.
    """
    layout = _Layout(examples, whole_prompts)
    key = _key(model, weights, layout, first_layer, whole_prompts)
    folder = root / key
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{key}.lock"):
        try:
            return PrefixCache(folder, layout, first_layer)
        except (FileNotFoundError, ValueError, KeyError):  # not there, or not what was written
            shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise CannotServe(f"the prefix cache cannot be read from {root} ({error.strerror})") from error
        scratch = folder.with_name(f".tmp-{os.getpid()}-{key}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            _Builder(model, layout, first_layer, whole_prompts, scratch, max_bytes).build(progress)
            os.replace(scratch, folder)
        except OSError as error:
            raise CannotServe(f"the prefix cache cannot be written to {root} ({error.strerror})") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _evict(root, keep=key, max_bytes=max_bytes)
        return PrefixCache(folder, layout, first_layer)


def weights_hash(model: Any) -> str:
    """Hash of every weight, of the model's config and of the library that runs it."""
    import transformers

    digest = xxhash.xxh3_128(f"{transformers.__version__} {type(model).__name__}".encode())
    digest.update(model.config.to_json_string().encode())
    for name, parameter in model.state_dict().items():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class _Builder:
    """One pass over the prompts, then over what follows each of them."""

    def __init__(
        self, model: Any, layout: _Layout, first_layer: int, whole_prompts: bool, folder: Path, max_bytes: int
    ) -> None:
        self.model = model
        self.layers = decoder_layers(model)
        self.layout = layout
        self.first_layer = first_layer
        self.whole_prompts = whole_prompts
        self.kept_layers = range(0 if whole_prompts else first_layer + 1, len(self.layers))
        self.folder = folder
        self.max_bytes = max_bytes
        self.shards: list[dict[str, Any]] = []
        self.pending: dict[str, list[Tensor]] = {"kv": [], "hidden": [], "nll": []}
        self.pending_prompts = 0

    @torch.no_grad()
    def build(self, progress: Tally) -> None:
        """Write shards and index."""
        num_prompts = len(self.layout.prompts)
        for start in range(0, num_prompts, PROMPTS_PER_BATCH):
            end = min(start + PROMPTS_PER_BATCH, num_prompts)
            prefix = self._prefix(self.layout.prompts[start:end])
            self._continue(prefix, start, end)
            self.pending_prompts += end - start
            if start == 0:
                self._check_size(sum(t.nbytes for tensors in self.pending.values() for t in tensors), end)
            if sum(tensor.nbytes for tensors in self.pending.values() for tensor in tensors) > SHARD_BYTES:
                self._write_shard()
            progress(end, num_prompts)
        if self.pending_prompts:
            self._write_shard()
        (self.folder / INDEX).write_text(json.dumps({"shards": self.shards}))

    def _prefix(self, prompts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Keys and values of every prompt's tokens but the last, at all layers: [P, 2, layers, H, d] each."""
        longest = max(len(prompt) for prompt in prompts) - 1
        ids_BP = torch.zeros((len(prompts), max(longest, 1)), dtype=torch.long)
        mask_BP = torch.zeros_like(ids_BP)
        for row, prompt in enumerate(prompts):
            ids_BP[row, : len(prompt) - 1] = torch.tensor(prompt[:-1], dtype=torch.long)
            mask_BP[row, : max(len(prompt) - 1, 1)] = 1  # a one-token prompt has no prefix; its row is not used
        cache = new_cache()
        device = self.model.device
        self.model.get_decoder()(
            input_ids=ids_BP.to(device), attention_mask=mask_BP.to(device), past_key_values=cache, use_cache=True
        )
        filled = [layer for layer in cache.layers[: len(self.layers)] if getattr(layer, "keys", None) is not None]
        if len(filled) < len(self.layers):
            raise CannotServe(f"{type(self.model).__name__} does not keep keys and values at every layer")
        kv_BP2LHd = torch.stack([torch.stack([layer.keys, layer.values]) for layer in filled]).permute(2, 4, 1, 0, 3, 5)
        return [kv_BP2LHd[row, : len(prompt) - 1] for row, prompt in enumerate(prompts)]

    def _continue(self, prefix: Sequence[Tensor], start: int, end: int) -> None:
        """Run what follows the prefixes, and keep hidden states, nll and, where wanted, the last token's keys."""
        examples = self.layout.examples[self.layout.first_example[start] : self.layout.first_example[end]]
        hidden: list[Tensor] = [torch.empty(0)] * len(examples)
        nll = torch.zeros(len(examples))
        last: dict[int, Tensor] = {}
        for rows in length_sorted_batches([len(example.answer_ids) for example in examples], 2 * PROMPTS_PER_BATCH):
            chosen = [examples[row] for row in rows]
            prompt_rows = [self.layout.prompt_row[example.prompt_ids] - start for example in chosen]
            batch = assemble(
                chosen,
                [prefix[row] for row in prompt_rows],
                [torch.zeros(len(example.answer_ids), 1) for example in chosen],
                self.model.device,
            )
            cache = filled_cache(batch, first_kept=0)
            seen: list[Tensor] = []
            layer = self.layers[self.first_layer]
            run = layer.forward

            def record(*args: Any, _run: Any = run, _seen: list[Tensor] = seen, **kwargs: Any) -> Any:
                output = _run(*args, **kwargs)
                _seen.append(output_tensor(output))
                return output

            with patched([(layer, record)]), head_at(self.model, batch.is_token_BT):
                outputs = self.model(
                    input_ids=suffix_ids(chosen).to(self.model.device),
                    attention_mask=batch.attention_mask_BS,
                    position_ids=batch.position_ids_BT,
                    past_key_values=cache,
                    use_cache=True,
                )
            nll_B = sequence_sum(token_nll(outputs.logits[0], batch.label_N), batch.row_N, len(chosen)).cpu()
            at_edit = batch.kv_BP2KHd.shape[1]
            for position, row in enumerate(rows):
                hidden[row] = seen[0][position, : len(examples[row].answer_ids)].cpu()
                nll[row] = nll_B[position]
                if self.whole_prompts and prompt_rows[position] not in last:
                    last[prompt_rows[position]] = torch.stack(
                        [
                            torch.stack([layer.keys[position, :, at_edit], layer.values[position, :, at_edit]])
                            for layer in cache.layers[: len(self.layers)]
                        ],
                        dim=1,
                    )[None]
        if start == 0:
            self._check_against_plain(examples[0], float(nll[0]))
        for row, kv in enumerate(prefix):
            whole = torch.cat([kv, last[row]]) if self.whole_prompts else kv
            self.pending["kv"].append(whole[:, :, self.kept_layers.start :].cpu())
        self.pending["hidden"] += hidden
        self.pending["nll"].append(nll)

    def _check_against_plain(self, example: Example, nll: float) -> None:
        """The model must mean the same by keys and values from a cache as by tokens it reads itself."""
        ids = torch.tensor([example.prompt_ids + example.answer_ids], device=self.model.device)
        logits_LV = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0]
        labels = torch.tensor(example.answer_ids, device=self.model.device)
        plain = float(token_nll(logits_LV[-len(labels) :], labels).sum())
        check_same_nll(self.model, nll, plain)

    def _check_size(self, first_bytes: int, first_prompts: int) -> None:
        expected = first_bytes / first_prompts * len(self.layout.prompts)
        if expected > self.max_bytes:
            raise CannotServe(
                f"the prefix cache would take about {expected / 1e9:.1f} GB of the {self.max_bytes / 1e9:.1f} GB "
                "allowed; set GRUN_BENCH_CACHE_GB higher"
            )

    def _write_shard(self) -> None:
        file = self.folder / f"{len(self.shards):05d}.safetensors"
        save_file({name: torch.cat(tensors).contiguous() for name, tensors in self.pending.items()}, file)
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
        status = file.stat()
        self.shards.append(
            {
                "file": file.name,
                "num_prompts": self.pending_prompts,
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "xxh3": _file_hash(file),
            }
        )
        self.pending = {"kv": [], "hidden": [], "nll": []}
        self.pending_prompts = 0


def left_padded(kv: Sequence[Tensor]) -> Tensor:
    """Keys and values [P, 2, K, H, d] of several prompts, their last tokens aligned: [B, P, 2, K, H, d]."""
    longest = max(len(keys) for keys in kv)
    padded_BP2KHd = kv[0].new_zeros((len(kv), longest, *kv[0].shape[1:]))
    for row, keys in enumerate(kv):
        padded_BP2KHd[row, longest - len(keys) :] = keys
    return padded_BP2KHd


def assemble(
    examples: Sequence[Example], kv: Sequence[Tensor], hidden: Sequence[Tensor], device: torch.device | str
) -> PrefixBatch:
    """One batch: prefixes padded on the left, what follows on the right, so that the two meet at the edit.

    kv: [P, 2, K, H, d] of each example, of its prefix alone. hidden: [answer tokens, D] of each.
    """
    kv_BP2KHd = left_padded(kv)
    label_N, row_N = answer_labels(examples)
    longest = kv_BP2KHd.shape[1]
    lengths = [len(example.answer_ids) for example in examples]
    hidden_BTD = hidden[0].new_zeros((len(examples), max(lengths), hidden[0].shape[-1]))
    mask_BS = torch.zeros((len(examples), longest + max(lengths)), dtype=torch.long)
    first_position_B = torch.tensor([len(example.prompt_ids) - 1 for example in examples])
    for row, (keys, states) in enumerate(zip(kv, hidden, strict=True)):
        hidden_BTD[row, : lengths[row]] = states
        mask_BS[row, longest - len(keys) : longest + lengths[row]] = 1
    return PrefixBatch(
        kv_BP2KHd=kv_BP2KHd.to(device),
        hidden_BTD=hidden_BTD.to(device),
        attention_mask_BS=mask_BS.to(device),
        position_ids_BT=(first_position_B[:, None] + torch.arange(max(lengths))).to(device),
        is_token_BT=mask_BS[:, longest:].bool().to(device),
        label_N=label_N.to(device),
        row_N=row_N.to(device),
    )


def check_same_nll(model: Any, from_cache: float, without: float) -> None:
    """Raises CannotServe where a model does not mean the same by cached keys and values as by the tokens."""
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not abs(from_cache - without) <= tolerance * max(abs(without), 1.0):
        raise CannotServe(f"{type(model).__name__} gives {from_cache:.4f} nats with a cache and {without:.4f} without")


def suffix_ids(examples: Sequence[Example]) -> Tensor:
    """What the model reads from the edited position on: [B, T], right-padded."""
    rows = [(example.prompt_ids[-1], *example.answer_ids[:-1]) for example in examples]
    ids_BT = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.tensor(row)
    return ids_BT


def filled_cache(batch: PrefixBatch, *, first_kept: int) -> Any:
    """A `transformers` cache that holds a batch's prefixes.

    first_kept: layer of the batch's first keys. Layers below it are never run, but the model measures its mask on
    one of them: they get placeholders of the right length.
    """
    cache = new_cache()
    batch_size, length = batch.kv_BP2KHd.shape[:2]
    if length == 0:
        return cache
    placeholder = batch.hidden_BTD.new_zeros(1).expand(batch_size, 1, length, 1)
    for layer in range(first_kept):
        cache.update(placeholder, placeholder, layer)
    for index in range(batch.kv_BP2KHd.shape[3]):
        keys_BHPd, values_BHPd = batch.kv_BP2KHd[:, :, :, index].permute(2, 0, 3, 1, 4)
        cache.update(keys_BHPd, values_BHPd, first_kept + index)
    return cache


def _key(model: Any, weights: str, layout: _Layout, first_layer: int, whole_prompts: bool) -> str:
    digest = xxhash.xxh3_128(f"{VERSION} {weights} {model.dtype} {first_layer} {whole_prompts}".encode())
    for example in layout.examples:
        digest.update(json.dumps([example.prompt_ids, example.answer_ids]).encode())
    return digest.hexdigest()


def _check(file: Path, recorded: dict[str, Any]) -> None:
    """Raises ValueError where a shard is not what was written: by size, and by content if it was touched since."""
    status = file.stat()
    if status.st_size != recorded["size"]:
        raise ValueError(f"{file} is truncated")
    if status.st_mtime_ns != recorded["mtime_ns"] and _file_hash(file) != recorded["xxh3"]:
        raise ValueError(f"{file} is damaged")


def _file_hash(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while block := handle.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def _evict(root: Path, *, keep: str, max_bytes: int) -> None:
    """Delete least recently used caches until the rest fit. Who has one mapped goes on reading it."""
    caches = sorted((index.stat().st_mtime, index.parent) for index in root.glob(f"*/{INDEX}"))
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for _, folder in caches}
    total = sum(sizes.values())
    for _, folder in caches:
        if total <= max_bytes:
            return
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
