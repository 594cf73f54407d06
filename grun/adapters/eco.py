"""Embedding-corrupted prompts: what is about the forget set reaches the model broken, and no weight is trained.

ECO, arXiv 2406.07933: a classifier decides whether a prompt is about the forget set, and the token embeddings of one
that is are corrupted, as strongly as makes the answers those of a model that never knew. What departs from the paper:

- Its classifier is a RoBERTa, fine-tuned. Here it is the router (`pyvene_custom/router.py`), in closed form,
  on the untouched model's hidden state at the prompt's last token.
- It finds the strength by zeroth-order optimisation towards a score that a retain model might have. Here that is what a
  sweep is for, as with every other setting.
- All prompt tokens but the last are corrupted, as in the authors' code where no second classifier chooses the tokens
  (theirs for TOFU picks names). Answers are left alone: their code corrupts the answer too while it scores one.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Strict
from torch import Tensor

from grun.adapters.attaching import GatedEdited
from grun.adapters.grun import set_gate_threshold
from grun.adapters.switched import Prompts, SwitchedModel
from grun.errors import UserError
from grun.lm.layers import Layer, layer_index
from grun.lm.patching import patched
from grun.model.forward import CausalLM
from grun.settings import LATER, LocalPath
from pyvene_custom.edits import Gated
from pyvene_custom.gate_functions import new_gate

CorruptionName = Literal["noise", "zero_out", "flip_sign"]
Dims = Annotated[int, Strict(), Ge(1)] | Annotated[float, Strict(), Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class EcoConfig(GatedEdited):
    """Corrupt the embeddings of prompts that a gate in closed form holds to be about the forget set (arXiv 2406.07933).

    No weight is trained, so that there is no forget loss, no retain loss and nothing under `training`.
    """

    has_loss: ClassVar[Literal[False]] = False
    learning_rate: ClassVar[float] = 0.0
    gate_weight: ClassVar[float] = 0.0
    gate_warmup_steps: ClassVar[int] = 0
    name: Literal["eco"] = "eco"
    corruption: CorruptionName = "noise"
    """Of each token's embedding: Gaussian noise on its first entries, or its largest ones by size set to 0, or turned
    in sign."""
    dims: Dims = 1
    """Entries of an embedding that are corrupted, or their share of all, written as a decimal."""
    strength: Annotated[float, Gt(0)] = 5.0
    """Noise: its standard deviation."""
    gate_function: Literal["router"] = "router"
    """What decides whether a prompt is about the forget set."""
    gate_layer: Layer = 1.0
    """Whose output at the last prompt token it reads: its index from 0, or its relative depth as a decimal."""
    gate_threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    """Where the gate is below it, the prompt is left as it is."""
    max_false_openings: Annotated[float, Ge(0), Lt(1)] | None = field(default=None, metadata=LATER)
    """Choose the threshold: the least at which no larger a share of kept prompts opens a gate, by a fifth of the
    retain set, which nothing else is trained on then. None: gate_threshold it is."""
    keep_prompts: LocalPath | None = field(default=None, metadata=LATER)
    """Router: a file of further questions to stay shut for, one a line, or rows of JSON with `question`."""
    keep_prompts_digest: str | None = field(default=None, metadata=LATER)
    """What it holds; the command finds it out."""

    def attach(self, model: CausalLM, seed: int) -> "CorruptedModel":
        """Freeze the model and put a gate before it, shut until it is fitted. seed: of the noise.

        Raises UserError where the model has no such gate_layer, or fewer dimensions than are to be corrupted.
        """
        config = model.config.get_text_config()
        if self.dims > config.hidden_size:
            raise UserError(
                "adapter.dims", f"{self.dims} is more than the hidden size; use at most {config.hidden_size}"
            )
        dims = self.dims if isinstance(self.dims, int) else max(1, round(self.dims * config.hidden_size))
        gate_layer = layer_index(self.gate_layer, config.num_hidden_layers, "adapter.gate_layer")
        model.requires_grad_(False)
        corruption = Corruption(self.corruption, dims, self.strength, seed, config.hidden_size)
        adapted = CorruptedModel(model, {0: corruption}, "answer", gate_layer)
        set_gate_threshold(adapted, self.gate_threshold)
        return adapted


class Corruption(Gated):
    """What becomes of a prompt's embeddings, and the gate that decides whether."""

    seed: Tensor

    def __init__(self, name: CorruptionName, dims: int, strength: float, seed: int, hidden_size: int) -> None:
        """dims: entries of each embedding that are corrupted. strength: the noise's standard deviation."""
        super().__init__()
        self.name, self.dims, self.strength = name, dims, strength
        self.register_buffer("seed", torch.tensor(seed))
        self.gate = new_gate("router", hidden_size)

    def corrupted(self, prompt: tuple[int, ...], embedding_PD: Tensor, weight_K: Tensor) -> Tensor:
        """The embeddings of the tokens before a prompt's last one, corrupted; the same whenever it is asked.

        weight_K: how open the gate is to it; what is open at all is corrupted wholly.
        """
        if self.name == "noise":
            draw = torch.Generator().manual_seed(zlib.crc32(f"{int(self.seed)} {prompt}".encode()))
            noise_PD = torch.randn(len(embedding_PD), self.dims, generator=draw)
            return add_noise(embedding_PD, self.strength * noise_PD.to(embedding_PD))
        return scale_largest(embedding_PD, self.dims, 0.0 if self.name == "zero_out" else -1.0)


def add_noise(embedding_PD: Tensor, noise_Pn: Tensor) -> Tensor:
    """The first n entries of each embedding have theirs of the noise added."""
    n = noise_Pn.shape[1]
    return torch.cat([embedding_PD[:, :n] + noise_Pn, embedding_PD[:, n:]], dim=1)


def scale_largest(embedding_PD: Tensor, n: int, factor: float) -> Tensor:
    """The n entries of each embedding that are largest by size are multiplied."""
    largest_Pn = embedding_PD.abs().topk(n, dim=1).indices
    return embedding_PD.scatter(1, largest_Pn, factor * embedding_PD.gather(1, largest_Pn))


class CorruptedModel(SwitchedModel):
    """A frozen model whose prompts are corrupted where a gate is open."""

    @contextlib.contextmanager
    def changed(
        self, prompts: Prompts, weight_BK: Tensor, padding: Sequence[int]
    ) -> Iterator[Callable[[Tensor], None]]:
        """See `SwitchedModel`. The first pass inside is that of the prompts; what is decoded after it is left alone."""
        corruption, embeddings = self._edits()[0], self.model.get_input_embeddings()
        embed, rows_to_come = embeddings.forward, (weight_BK > 0).any(dim=1).nonzero()[:, 0].tolist()

        def corrupt(input_ids_BL: Tensor) -> Tensor:
            if not rows_to_come:
                return embed(input_ids_BL)
            embedding_BLD = list(embed(input_ids_BL))
            while rows_to_come:
                row = rows_to_come.pop()
                before, end = padding[row], padding[row] + len(prompts[row]) - 1
                whole_LD = embedding_BLD[row]
                broken_PD = corruption.corrupted(prompts[row], whole_LD[before:end], weight_BK[row])
                embedding_BLD[row] = torch.cat([whole_LD[:before], broken_PD, whole_LD[end:]])
            return torch.stack(embedding_BLD)

        with patched([(embeddings, corrupt)] if rows_to_come else []):
            yield lambda row_B: None
