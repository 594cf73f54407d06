"""Methods as people write them: `grun_latched+npo` is `latched GRUN + NPO`."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES: Mapping[str, str] = {
    "target_model": "target model",
    "retain_model": "retain model",
    "grun": "GRUN",
    "grun_latched": "latched GRUN",
    "reft": "ReFT",
    "lora": "LoRA",
    "gated_lora": "gated LoRA",
    "full": "full fine-tuning",
    "eco": "ECO",
    "grad_ascent": "GradDiff",
    "idk": "IDK",
    "dpo": "DPO",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "rmu": "RMU",
    "undial": "UNDIAL",
    "wga": "WGA",
    "satimp": "SatImp",
    "ce_u": "CE-U",
    "altpo": "AltPO",
    "pdu": "PDU",
    "kl": "KL",
    "rmu_mse": "MSE",
}
"""Parts of a method's id that are not simply words with lines between them, in the order to list them in."""


def parts(method: str) -> Sequence[str]:
    """What is trained, then the losses that train it."""
    return [NAMES.get(part, part.replace("_", " ")) for part in method.split("+")]


def name_of(method: str) -> str:
    """A method of this suite, or the name that a model unlearned elsewhere was given."""
    return " + ".join(parts(method))


def drawn_by(row: Mapping[str, Any]) -> tuple[str, str]:
    """Of a row of `runs`: what is trained, which its colour is by, and the losses that train it, its shape."""
    if row["adapter"] == "external":
        return "unlearned elsewhere", row["method"]
    trained, *losses = parts(row["method"])
    return trained, " + ".join(losses) or "no loss"


def rank(method: str) -> list[int]:
    """What to sort methods by, so that each has the same place, and colour, wherever it stands with others."""
    known = list(NAMES)
    return [known.index(part) if part in NAMES else len(known) for part in method.split("+")]
