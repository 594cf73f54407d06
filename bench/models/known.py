"""Models of the hub that are known: how each was taught, so that it is asked alike, and what it is measured against."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

import yaml

from bench.benchmarks import BenchmarkConfig
from bench.benchmarks.tofu import KEPT, TofuConfig
from bench.hub.repositories import split_revision
from bench.models.pretrained import ModelConfig, PretrainedConfig

KNOWN_PROMPTS: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    resources.files("bench.models").joinpath("known_prompts.yaml").read_text(encoding="utf-8")
)
"""Name, or a pattern of names → settings of a PromptConfig."""


def with_known_retain_model(model: ModelConfig, benchmark: BenchmarkConfig) -> ModelConfig:
    """Measured against the one that goes with the forget split, where none is named.

    open-unlearning's TOFU models come in fours: trained on all of it, and on what each forget split leaves.
    """
    name, _ = split_revision(model.name)
    is_known = isinstance(benchmark, TofuConfig) and fnmatchcase(name, "open-unlearning/tofu_*_full")
    if not is_known or not isinstance(model, PretrainedConfig) or model.retain_model:
        return model
    return replace(model, retain_model=f"{name.removesuffix('full')}{KEPT[benchmark.forget_split]}")


def with_known_prompt(model: Any) -> Any:
    """A model's settings, as given by the user, over what is known of how it is asked."""
    if not isinstance(model, Mapping):
        return model
    name, _ = split_revision(str(model.get("name")))
    known = next((own for pattern, own in KNOWN_PROMPTS.items() if fnmatchcase(name, pattern)), None)
    given = model.get("prompt") or {}
    return {**model, "prompt": {**known, **given}} if known and isinstance(given, Mapping) else model
