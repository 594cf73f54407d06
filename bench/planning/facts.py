"""What is known without asking anybody: GPUs, configurations of models, and how long a benchmark's texts are."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from bench.models.pretrained import PretrainedConfig, load_model_config
from grun.errors import UserError


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(resources.files("bench.planning").joinpath(name).read_text(encoding="utf-8"))
    return found


MODELS: Mapping[str, Mapping[str, Any]] = _read("models.yaml")
"""Name → what its config.json says."""
BENCHMARKS: Mapping[str, Mapping[str, Any]] = _read("benchmarks.yaml")
"""Name → part → rows, and [mean, longest] of each text's tokens."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One GPU, or the CPU, of a worker."""

    name: str
    memory_gb: float
    """In 10^9 bytes."""
    tflops: float
    """10^12 FLOP a second of bfloat16 products, at most."""

    @property
    def is_gpu(self) -> bool:
        """Whether it computes in bfloat16, and groups nothing by length."""
        return self.name != "cpu"


GPUS: Mapping[str, Machine] = {name: Machine(name=name, **facts) for name, facts in _read("gpus.yaml").items()}


def gpu(name: str) -> Machine:
    """Raises UserError where it is none that is known."""
    if name not in GPUS:
        raise UserError("--gpu", f"{name} is not known; use one of {', '.join(GPUS)}")
    return GPUS[name]


def model_config(model: PretrainedConfig) -> Any:
    """The `transformers` config of a model: of the shipped facts, else its own. No weights are read.

    Raises UserError where there is neither.
    """
    from transformers import AutoConfig

    facts = MODELS.get(model.name)
    if facts is None:
        return load_model_config(model.name)
    return AutoConfig.for_model(**facts)
