"""Models of the hub that are known: how each was taught, so that it is asked alike, and what it is measured against."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from bench.benchmarks import BenchmarkConfig
from bench.benchmarks.tofu import KEPT, TofuConfig
from bench.models.pretrained import ModelConfig, PretrainedConfig

PLAIN = {"style": "plain"}
KNOWN_PROMPTS: Mapping[str, Mapping[str, Any]] = {
    # open-unlearning's TOFU models, fine-tuned and unlearned: its configs/model, as changed in its pull request 101.
    "open-unlearning/*tofu_Llama-3*-Instruct*": {
        "style": "chat",
        "system": "You are a helpful assistant.",
        "date": "10 Apr 2025",
    },
    # TOFU's own: config/model_config.yaml of its repository. No blank stands before the answer.
    "locuslab/tofu_ft_llama2-7b": {"style": "plain", "text": "[INST] {question} [/INST]{answer}"},
    "locuslab/tofu_ft_phi-1.5": PLAIN,
    # MUSE's: continuations of news and books, asked behind examples.
    "muse-bench/MUSE-*": PLAIN,
    # The base models that GRUN's authors fine-tune (arXiv 2502.17823).
    "meta-llama/Llama-3.1-8B": PLAIN,
    "mistralai/Mistral-7B-v0.1": PLAIN,
}
"""Name, or a pattern of names → settings of a PromptConfig."""


def with_known_retain_model(model: ModelConfig, benchmark: BenchmarkConfig) -> ModelConfig:
    """Measured against the one that goes with the forget split, where none is named.

    open-unlearning's TOFU models come in fours: trained on all of it, and on what each forget split leaves.
    """
    is_known = isinstance(benchmark, TofuConfig) and fnmatchcase(model.name, "open-unlearning/tofu_*_full")
    if not is_known or not isinstance(model, PretrainedConfig) or model.retain_model:
        return model
    return replace(model, retain_model=f"{model.name.removesuffix('full')}{KEPT[benchmark.forget_split]}")


def with_known_prompt(model: Any) -> Any:
    """A model's settings, as given by the user, over what is known of how it is asked."""
    if not isinstance(model, Mapping):
        return model
    known = next((own for name, own in KNOWN_PROMPTS.items() if fnmatchcase(str(model.get("name")), name)), None)
    given = model.get("prompt") or {}
    return {**model, "prompt": {**known, **given}} if known and isinstance(given, Mapping) else model
