"""Modules of several requests on one frozen model: stack them, take one back, export them all.

Every request has trained a gated edit of its own on the same layers, or a gated LoRA. At inference all their gates read
the same hidden state, and h' = h + Σ_k w_k · Δ_k(h), where the combination says how the gates g_k become the weights
w_k; likewise the linear layers' outputs under the LoRAs.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from grun.adapters import ADAPTERS, AdapterConfig
from grun.adapters.eco import Corruption
from grun.adapters.gated_lora import LowRankUpdates
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import CausalLM
from pyvene_custom.edits import Gated, LoReFT
from pyvene_custom.gates import Gate

Combination = Literal["sum", "scaled_by_number", "top_1"]
"""sum: w = g. scaled_by_number: w = g · (0.6 K + 0.6), K the number of modules, as GRUN's own code. top_1: w = g of the
most open gate, 0 of the others."""
DEPLOYMENT = "deployment.json"
MODULES = "requests"


class CombinedGates(nn.Module):
    """The gates of K requests at one place, all in one matrix product.

    gate_threshold: a gate below it counts as 0; where all do, nothing is changed, bit for bit. Inference only.
    """

    def __init__(self, members: Mapping[str, Gated], combination: Combination, gate_threshold: float) -> None:
        """members: what is behind the gates, by request, in the order of the gate logits.

        Raises UserError where gates do not fit together, or there is no such combination.
        """
        super().__init__()
        if combination not in get_args(Combination):
            raise UserError("combination", f"is {combination!r}; use one of {', '.join(get_args(Combination))}")
        self.requests = tuple(members)
        self.combination = combination
        self.gate_threshold = gate_threshold
        gates = [cast(Gate, member.gate) for member in members.values()]
        self.reads_mean = gates[0].reads_mean
        with _of_one_config():
            self.gates = gates[0].stack(gates)

    def weight(self, gate_BK: Tensor) -> Tensor:
        """How much of each request's edit is applied at these gates: [B, K]; 0 where none of it is."""
        weight_BK = self.gates.opened(gate_BK) * (gate_BK >= self.gate_threshold)
        if self.combination == "top_1":
            first_B1 = gate_BK.argmax(dim=1, keepdim=True)
            return torch.zeros_like(weight_BK).scatter(1, first_B1, weight_BK.gather(1, first_B1))
        if self.combination == "scaled_by_number":
            return weight_BK * (0.6 * len(self.requests) + 0.6)
        return weight_BK

    def read(self, h_BD: Tensor) -> tuple[Tensor, Tensor]:
        """See `pyvene_custom.edits.Edit`."""
        logit_BK = self.gates.logit(h_BD)
        return self.weight(torch.sigmoid(logit_BK)), logit_BK


class CombinedEdit(CombinedGates):
    """The edits of K requests at one layer: the open ones' edits in two matrix products."""

    rotation_KRD: Tensor
    difference_KRD: Tensor
    bias_KR: Tensor

    def __init__(self, edits: Mapping[str, LoReFT], combination: Combination, gate_threshold: float) -> None:
        """See `CombinedGates`. Raises UserError where they differ in rank."""
        super().__init__(edits, combination, gate_threshold)
        members = list(edits.values())
        with torch.no_grad(), _of_one_config():
            rotation_KRD = torch.stack([edit.rotation.weight for edit in members])
            source_KRD = torch.stack([edit.learned_source.weight for edit in members])
        self.register_buffer("rotation_KRD", rotation_KRD)
        self.register_buffer("difference_KRD", source_KRD - rotation_KRD)
        self.register_buffer("bias_KR", torch.stack([edit.learned_source.bias.detach() for edit in members]))

    def edited(self, h_BTD: Tensor, weight_BK: Tensor) -> Tensor:
        """See `pyvene_custom.edits.Edit`."""
        is_applied_BK = weight_BK > 0
        if not is_applied_BK.any():
            return h_BTD
        used = is_applied_BK.any(dim=0).nonzero()[:, 0]  # of all K requests, those that some prompt needs
        h32_BTD = h_BTD.to(self.rotation_KRD.dtype)
        source_BTKR = (h32_BTD @ self.difference_KRD[used].flatten(0, 1).T).unflatten(2, (len(used), -1))
        source_BTKR = (source_BTKR + self.bias_KR[used]) * weight_BK[:, None, used, None]
        edited_BTD = (h32_BTD + source_BTKR.flatten(2) @ self.rotation_KRD[used].flatten(0, 1)).to(h_BTD.dtype)
        return torch.where(is_applied_BK.any(dim=1)[:, None, None], edited_BTD, h_BTD)


class CombinedUpdates(CombinedGates):
    """The low-rank updates of K requests."""

    def __init__(self, members: Mapping[str, LowRankUpdates], combination: Combination, gate_threshold: float) -> None:
        """See `CombinedGates`. Raises UserError where they differ in rank, or update different layers."""
        super().__init__(members, combination, gate_threshold)
        first, *others = members.values()
        self.names, self.scale = first.names, first.scale
        with torch.no_grad(), _of_one_config():
            if any((other.names, other.scale) != (self.names, self.scale) for other in others):
                raise ValueError("of different layers")
            self._down = {
                name: torch.stack([each.factors(name)[0] for each in members.values()]) for name in self.names
            }
            self._up = {name: torch.stack([each.factors(name)[1] for each in members.values()]) for name in self.names}

    def update(self, name: str, x_BTI: Tensor, weight_BK: Tensor) -> Tensor:
        """See `grun.adapters.gated_lora.Updates`."""
        used = (weight_BK > 0).any(dim=0).nonzero()[:, 0]  # of all K requests, those that some prompt needs
        down_KRI, up_KOR = self._down[name][used], self._up[name][used]
        low_BTKR = torch.einsum("bti,kri->btkr", x_BTI.to(down_KRI.dtype), down_KRI)
        return self.scale * torch.einsum("btkr,kor->bto", low_BTKR * weight_BK[:, None, used, None], up_KOR)


class CombinedCorruptions(CombinedGates):
    """The corruptions of K requests."""

    def __init__(self, members: Mapping[str, Corruption], combination: Combination, gate_threshold: float) -> None:
        """See `CombinedGates`."""
        super().__init__(members, combination, gate_threshold)
        self.members = nn.ModuleList(members.values())

    def corrupted(self, prompt: tuple[int, ...], embedding_PD: Tensor, weight_K: Tensor) -> Tensor:
        """See `grun.adapters.eco.Corruption`. That of the request whose gate is most open."""
        return cast(Corruption, self.members[int(weight_K.argmax())]).corrupted(prompt, embedding_PD, weight_K)


COMBINED: Mapping[type, Callable[..., CombinedGates]] = {
    LoReFT: CombinedEdit,
    LowRankUpdates: CombinedUpdates,
    Corruption: CombinedCorruptions,
}


def combine(
    base: EditedModel, modules: Mapping[str, EditedModel], combination: Combination, gate_threshold: float
) -> EditedModel:
    """The frozen model with the modules of all requests on, in their order. Whatever they were trained with stays.

    base: whose model and prefix caches are used. To take a request back, or to replace its module, combine the others
    with what is to be there: nothing of the old one is left. Raises UserError where the modules do not fit together.
    """
    places = {(module.layers, module.where, module.gate_layer) for module in modules.values()}
    if places != {(base.layers, base.where, base.gate_layer)}:
        raise UserError("requests", f"their modules edit different places ({places}); combine those of one config")
    combined = {}
    for layer in base.layers:
        members: dict[str, Any] = {request: module.edits[str(layer)] for request, module in modules.items()}
        combined[layer] = COMBINED[type(base.edits[str(layer)])](members, combination, gate_threshold)
    return base.with_edits(combined)


def combined_edits(adapted: EditedModel) -> list[CombinedGates]:
    """The edits of a model made by `combine`, layer by layer."""
    return [cast(CombinedGates, edit) for edit in adapted.edits.values()]


@contextlib.contextmanager
def _of_one_config() -> Iterator[None]:
    """Inside, what does not fit together is a UserError."""
    try:
        yield
    except (ValueError, RuntimeError):
        problem = "their modules differ in rank or gate function; combine those of one config"
        raise UserError("requests", problem) from None


def save_deployment(
    folder: Path,
    model: CausalLM,
    tokenizer: Any,
    config: AdapterConfig,
    modules: Mapping[str, Path],
    combination: Combination,
    gate_threshold: float,
) -> None:
    """One folder with everything: the base model and its tokenizer as `transformers` loads them, and all modules.

    `grun.unlearned.load(folder)` gives the model with all modules on; deleting one line of the folder's
    `deployment.json` takes that request back. modules: request → folder that `config.save` wrote.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for number, module in enumerate(modules.values()):
        shutil.copytree(module, folder / MODULES / f"{number:04d}")
    description = {
        **asdict(config),
        "combination": combination,
        "gate_threshold": gate_threshold,
        "name": ADAPTERS.name_of(config),
        "requests": {request: f"{MODULES}/{number:04d}" for number, request in enumerate(modules)},
    }
    (folder / DEPLOYMENT).write_text(json.dumps(description, indent=2) + "\n")


def load_deployment(folder: Path, model: CausalLM) -> EditedModel:
    """The model with all modules of a deployment on. Raises UserError where the folder is not whole."""
    try:
        description = {"name": "grun"} | json.loads((folder / DEPLOYMENT).read_text())  # once there was nothing else
        kind = ADAPTERS.named(description.pop("name"))
        config = kind(
            **{
                field.name: tuple(description[field.name]) if field.name == "layers" else description[field.name]
                for field in fields(kind)
                if field.name in description
            }
        )
        modules = {request: config.load(model, folder / place) for request, place in description["requests"].items()}
        combination, gate_threshold = description["combination"], description["gate_threshold"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(str(folder), f"is not a whole deployment ({type(error).__name__}: {error})") from error
    if not modules:
        raise UserError(str(folder), f"{DEPLOYMENT} names no request; load the model with transformers")
    return combine(next(iter(modules.values())), modules, combination, gate_threshold)
