"""Modules of several requests on one frozen model: stack them, take one back, export them all.

Every request has trained a gated edit of its own on the same layers. At inference all their gates read the same hidden
state, and h' = h + Σ_k w_k(h) · Δ_k(h), where the combination says how the gates g_k become the weights w_k.

Shapes: P edited positions, D hidden size, R rank, K requests, I and O a gate layer's inputs and outputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from grun.adapters.grun import GrunConfig
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import CausalLM
from pyvene_custom.edits import GatedLoReFT

Combination = Literal["sum", "scaled", "top_1"]
"""sum: w = g. scaled: w = g · (0.6 n + 0.6), n the sum of the gates, as GRUN's own code. top_1: w = g of the most
open gate, 0 of the others."""
DEPLOYMENT = "deployment.json"
MODULES = "requests"


class CombinedEdit(nn.Module):
    """The edits of K requests at one layer: all gates in one matrix product, then the open ones' edits in two.

    gate_threshold: a gate below it counts as 0; where all do, h' is h bit for bit. Inference only.
    """

    rotation_KRD: Tensor
    difference_KRD: Tensor
    bias_KR: Tensor

    def __init__(self, edits: Mapping[str, GatedLoReFT], combination: Combination, gate_threshold: float) -> None:
        """edits: by request, in the order of the gate logits. They share rank and gate function.

        Raises UserError where they do not.
        """
        super().__init__()
        self.requests = tuple(edits)
        self.combination = combination
        self.gate_threshold = gate_threshold
        members = list(edits.values())
        gates = [[part for part in edit.gate if isinstance(part, nn.Linear)] for edit in members]
        shapes = {
            (edit.rotation.weight.shape, *(part.weight.shape for part in gate))
            for edit, gate in zip(members, gates, strict=True)
        }
        if len(shapes) > 1:
            raise UserError("requests", "their modules differ in rank or gate function; combine those of one config")
        with torch.no_grad():
            rotation_KRD = torch.stack([edit.rotation.weight for edit in members])
            source_KRD = torch.stack([edit.learned_source.weight for edit in members])
            self.register_buffer("rotation_KRD", rotation_KRD)
            self.register_buffer("difference_KRD", source_KRD - rotation_KRD)
            self.register_buffer("bias_KR", torch.stack([edit.learned_source.bias for edit in members]))
            self.num_gate_layers = len(gates[0])
            for level, parts in enumerate(zip(*gates, strict=True)):
                self.register_buffer(f"gate_weight_KOI_{level}", torch.stack([part.weight for part in parts]))
                self.register_buffer(f"gate_bias_KO_{level}", torch.stack([part.bias for part in parts]))

    def gate_logit(self, h_PD: Tensor) -> Tensor:
        """How open each request's gate is, before the sigmoid: [P, K], float32."""
        h_PD = h_PD.to(self.rotation_KRD.dtype)
        weight_KOI, bias_KO = self._gate_layer(0)
        x_PKO = (h_PD @ weight_KOI.flatten(0, 1).T).view(len(h_PD), *bias_KO.shape) + bias_KO
        for level in range(1, self.num_gate_layers):
            weight_KOI, bias_KO = self._gate_layer(level)
            x_PKO = torch.einsum("pki,koi->pko", torch.relu(x_PKO), weight_KOI) + bias_KO
        return x_PKO[..., 0]

    def is_applied(self, gate_PK: Tensor) -> Tensor:
        """Which requests' edits are applied at these gates: bool [P, K]."""
        is_open_PK = gate_PK >= self.gate_threshold
        if self.combination == "top_1":
            is_first_PK = torch.zeros_like(is_open_PK).scatter(1, gate_PK.argmax(dim=1, keepdim=True), True)
            return is_open_PK & is_first_PK
        return is_open_PK

    def forward(self, h_PD: Tensor) -> tuple[Tensor, Tensor]:
        """The edited hidden states [P, D], in h's own dtype, and the gate logits [P, K]."""
        logit_PK = self.gate_logit(h_PD)
        gate_PK = torch.sigmoid(logit_PK)
        is_applied_PK = self.is_applied(gate_PK)
        if not is_applied_PK.any():
            return h_PD, logit_PK
        weight_PK = gate_PK * is_applied_PK
        if self.combination == "scaled":
            weight_PK = weight_PK * (0.6 * weight_PK.sum(dim=1, keepdim=True) + 0.6)
        used = is_applied_PK.any(dim=0).nonzero()[:, 0]  # of all K requests, those that some prompt needs
        h32_PD = h_PD.to(self.rotation_KRD.dtype)
        source_PKR = (h32_PD @ self.difference_KRD[used].flatten(0, 1).T).view(len(h_PD), len(used), -1)
        source_PKR = (source_PKR + self.bias_KR[used]) * weight_PK[:, used, None]
        edited_PD = (h32_PD + source_PKR.flatten(1) @ self.rotation_KRD[used].flatten(0, 1)).to(h_PD.dtype)
        return torch.where(is_applied_PK.any(dim=1, keepdim=True), edited_PD, h_PD), logit_PK

    def _gate_layer(self, level: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"gate_weight_KOI_{level}"), self.get_buffer(f"gate_bias_KO_{level}")


def combine(
    base: EditedModel, modules: Mapping[str, EditedModel], combination: Combination, gate_threshold: float
) -> EditedModel:
    """The frozen model with the modules of all requests on, in their order. Whatever they were trained with stays.

    base: whose model and prefix caches are used. To take a request back, or to replace its module, combine the others
    with what is to be there: nothing of the old one is left. Raises UserError where the modules do not fit together.
    """
    layers = {module.layers for module in modules.values()}
    if len(layers) > 1:
        raise UserError("requests", f"their modules edit different layers ({layers}); combine those of one config")
    return base.with_edits(
        {
            layer: CombinedEdit(
                {request: cast(GatedLoReFT, module.edits[str(layer)]) for request, module in modules.items()},
                combination,
                gate_threshold,
            )
            for layer in next(iter(layers))
        }
    )


def combined_edits(adapted: EditedModel) -> list[CombinedEdit]:
    """The edits of a model made by `combine`, layer by layer."""
    return [cast(CombinedEdit, edit) for edit in adapted.edits.values()]


def save_deployment(
    folder: Path,
    model: CausalLM,
    tokenizer: Any,
    config: GrunConfig,
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
        "combination": combination,
        "gate_threshold": gate_threshold,
        "layers": list(config.layers),
        "rank": config.rank,
        "gate_function": config.gate_function,
        "requests": {request: f"{MODULES}/{number:04d}" for number, request in enumerate(modules)},
    }
    (folder / DEPLOYMENT).write_text(json.dumps(description, indent=2) + "\n")


def load_deployment(folder: Path, model: CausalLM) -> EditedModel:
    """The model with all modules of a deployment on. Raises UserError where the folder is not whole."""
    try:
        description = json.loads((folder / DEPLOYMENT).read_text())
        config = GrunConfig(
            layers=tuple(description["layers"]), rank=description["rank"], gate_function=description["gate_function"]
        )
        modules = {request: config.load(model, folder / place) for request, place in description["requests"].items()}
        combination, gate_threshold = description["combination"], description["gate_threshold"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(str(folder), f"is not a whole deployment ({type(error).__name__}: {error})") from error
    if not modules:
        raise UserError(str(folder), f"{DEPLOYMENT} names no request; load the model with transformers")
    return combine(next(iter(modules.values())), modules, combination, gate_threshold)
