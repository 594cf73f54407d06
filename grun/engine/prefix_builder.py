"""Computes what a prefix cache holds: one pass over the prompts, then, up to the edit, over what follows them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from grun.data import Example, length_sorted_batches
from grun.engine.prefix_batch import assemble
from grun.engine.prefix_layout import INDEX, SHARD_PROMPTS, CannotServe, Layout, write_shard
from grun.lm.kv_cache import keys_and_values, new_cache
from grun.lm.patching import decoder_layers, patched
from grun.lm.reading import layer_output
from grun.losses import token_nll
from grun.model.changed import pass_on
from grun.model.forward import Tally


@dataclass(frozen=True)
class Builder:
    """One cache in the making."""

    model: Any
    layout: Layout
    first_layer: int
    """The first edited layer."""

    def build(self, folder: Path, max_bytes: int, progress: Tally) -> None:
        """Write shards and index. Raises CannotServe where they will take more than max_bytes."""
        entries: list[dict[str, Any]] = []
        for shard in self.layout.shards:
            kept = self.kept(shard)
            if not entries:
                self._check_size(sum(tensor.nbytes for tensor in kept.values()), max_bytes)
            entries.append(write_shard(folder / f"{len(entries):05d}.safetensors", kept))
            progress(shard.stop, len(self.layout.prompts))
        (folder / INDEX).write_text(json.dumps({"shards": entries}))

    @torch.no_grad()
    def kept(self, shard: slice) -> dict[str, Tensor]:
        """Keys and values of a shard's prompts, and hidden states of what follows them; with the first shard the nll of
        the examples to be checked."""
        prefix, examples = self._prefix(self.layout.prompts[shard]), self.layout.examples_of(shard)
        hidden: list[Tensor] = [torch.empty(0)] * len(examples)
        last: dict[int, Tensor] = {}
        for rows in length_sorted_batches([len(example.answer_ids) for example in examples], 2 * SHARD_PROMPTS):
            chosen = [examples[row] for row in rows]
            places = [self.layout.prompt_row[example.prompt_ids] - shard.start for example in chosen]
            hidden_BTD, last_kv = self._suffixes(chosen, [prefix[place] for place in places])
            for position, row in enumerate(rows):
                hidden[row] = hidden_BTD[position, : len(examples[row].answer_ids)].cpu()
                if last_kv is not None:
                    last.setdefault(places[position], last_kv[position])
        if self.layout.whole_prompts:
            above = len(decoder_layers(self.model)) - self.first_layer - 1  # nobody asks for a last token's there
            kv = [torch.cat([own, pad(last[row], (0, 0, 0, 0, 0, above))]).cpu() for row, own in enumerate(prefix)]
        else:
            kv = [own[:, :, self.first_layer + 1 :].cpu() for own in prefix]
        checked = [self._plain_nll(example) for example in self.layout.checked] if shard.start == 0 else []
        return {"kv": torch.cat(kv), "hidden": torch.cat(hidden), "nll": torch.tensor(checked)}

    def _prefix(self, prompts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Keys and values of every prompt's tokens but the last, at all layers: [P, 2, M, H, d] each."""
        read = [torch.tensor(prompt[:-1] or (0,)) for prompt in prompts]  # a row without a prefix is not used
        ids_BP = pad_sequence(read, batch_first=True)
        mask_BP = pad_sequence([torch.ones_like(ids) for ids in read], batch_first=True)
        cache = new_cache()
        device = self.model.device
        self.model.get_decoder()(
            input_ids=ids_BP.to(device), attention_mask=mask_BP.to(device), past_key_values=cache, use_cache=True
        )
        kv_BP2MHd = self._keys_and_values(cache, len(decoder_layers(self.model)))
        return [kv_BP2MHd[row, : len(prompt) - 1] for row, prompt in enumerate(prompts)]

    def _suffixes(self, examples: Sequence[Example], prefix: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What follows each example's prefix: the first edited layer's output [B, T, D], and where whole prompts are
        kept, up to that layer their last tokens' keys and values, [B, 1, 2, M, H, d]. The layers above are not run."""
        nothing = [torch.zeros(len(example.answer_ids), 1) for example in examples]
        batch = assemble(examples, prefix, nothing, self.model.device, first_kept=0)
        suffixes = [torch.tensor((example.prompt_ids[-1], *example.answer_ids[:-1])) for example in examples]
        above = decoder_layers(self.model)[self.first_layer + 1 :]
        with layer_output(self.model, self.first_layer) as hidden, patched((layer, pass_on) for layer in above):
            self.model.get_decoder()(
                input_ids=pad_sequence(suffixes, batch_first=True).to(self.model.device),
                attention_mask=batch.attention_mask_BS,
                position_ids=batch.position_ids_BT,
                past_key_values=batch.cache,
                use_cache=True,
            )
        if not self.layout.whole_prompts:
            return hidden[0], None
        at_edit = batch.attention_mask_BS.shape[1] - batch.hidden_BTD.shape[1]
        kv_BS2MHd = self._keys_and_values(batch.cache, self.first_layer + 1)
        return hidden[0], kv_BS2MHd[:, at_edit : at_edit + 1]

    def _keys_and_values(self, cache: Any, num_layers: int) -> Tensor:
        kv_BS2MHd = keys_and_values(cache, num_layers)
        if kv_BS2MHd is None:
            raise CannotServe(f"{type(self.model).__name__} does not keep keys and values at every layer")
        return kv_BS2MHd

    def _plain_nll(self, example: Example) -> float:
        """As the model reads it itself, without a cache."""
        ids = torch.tensor([example.prompt_ids + example.answer_ids], device=self.model.device)
        logits_LV = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0]
        labels = torch.tensor(example.answer_ids, device=self.model.device)
        return float(token_nll(logits_LV[-len(labels) :], labels).sum())

    def _check_size(self, first_bytes: int, max_bytes: int) -> None:
        expected = first_bytes / self.layout.shards[0].stop * len(self.layout.prompts)
        if expected > max_bytes:
            sizes = f"{expected / 1e9:.1f} GB of the {max_bytes / 1e9:.1f} GB allowed"
            raise CannotServe(f"the prefix cache would take about {sizes}; set GRUN_BENCH_CACHE_GB higher")


def check_same_nll(model: Any, from_cache: float, without: float) -> None:
    """Raises CannotServe where a model does not mean the same by cached keys and values as by the tokens."""
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not abs(from_cache - without) <= tolerance * max(abs(without), 1.0):
        raise CannotServe(f"{type(model).__name__} gives {from_cache:.4f} nats with a cache and {without:.4f} without")
