"""LoRA on every linear layer but the LM head, through PEFT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt

from grun.adapters.adapter import Ungated
from grun.model.forward import CausalLM, PlainModel


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Ungated):
    """Train low-rank updates of the linear layers (arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """AdamW's peak learning rate."""
    r: Annotated[int, Ge(1)] = 4
    """Rank of the updates."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """The updates are scaled by alpha / r."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Dropout on the updates' input while training."""

    def attach(self, model: CausalLM, seed: int) -> PlainModel:
        """Wrap the model; the updates start at zero, so nothing changes before the first step."""
        import peft

        config = peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return PlainModel(peft.get_peft_model(model, config))

    def save(self, adapted: PlainModel, folder: Path) -> None:
        """Write the updates in PEFT's own format (safetensors)."""
        adapted.model.save_pretrained(str(folder))

    def load(self, model: CausalLM, folder: Path) -> PlainModel:
        """The model with the updates saved in `folder`, bit for bit."""
        import peft

        adapted = PlainModel(peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True))
        adapted.train(False)
        return adapted
