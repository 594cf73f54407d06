"""Which runs belong together: what a run is measured with, and its module at other gate thresholds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.benchmarks import default_objectives
from bench.config import RunConfig, run_config
from bench.models.prepare import StartFrom
from grun.training.openings import check_thresholds

TOLD_APART = math.log10(0.05)
"""The log10 forget quality below which TOFU calls two models different."""


def prerequisite(config: RunConfig, start_from: StartFrom) -> RunConfig:
    """The run that only evaluates one of the models of `config`, as it is."""
    kept = {key: config.to_dict()[key] for key in ("benchmark", "model", "evaluation")}
    kept["evaluation"].pop("after", None)
    return run_config({**kept, "start_from": start_from, "adapter": "none"})


def prerequisites(config: RunConfig) -> list[RunConfig]:
    """What a run is measured with, the retain model first: made before the run, and only read by it.

    The retain model is measured with nothing, the target model with the retain model, all else with both and with the
    model that it starts from.
    """
    known: list[StartFrom] = ["retain_model", "target_model"] if has_retain_model(config) else ["target_model"]
    runs = [prerequisite(config, start_from) for start_from in dict.fromkeys([*known, config.start_from])]
    keys = [run.run_key for run in runs]
    return runs[: keys.index(config.run_key)] if config.run_key in keys else runs


def doubt(target: Mapping[str, Any], retain: Mapping[str, Any] | None) -> str | None:
    """A line for the user where the target model seems not to know what it is to forget. Given are rows of `runs`.

    By TOFU's measure it cannot be told from the retain model; without that, what it gives away of the forget set is no
    more than the retain model does or, where there is none, than a guess: one answer in four, one token in ten.
    """
    quality = target["log10_forget_quality"]
    name, *_ = default_objectives(target["benchmark"], target["forget_split"])
    if quality is not None:
        is_known = quality < TOLD_APART
    else:
        name = "forget_extraction_strength" if name == "log10_forget_quality" else name
        ignorant = retain[name] if retain else 0.25 if name.endswith("accuracy") else 0.1
        is_known = target[name] is None or target[name] > ignorant
    if is_known:
        return None
    return (
        f"the target model seems not to know the forget set ({name} {target[name]:.3f}), so that forgetting it shows "
        "nothing; teach it longer (model.fine_tuning.num_epochs), or choose what it knows"
    )


def has_retain_model(config: RunConfig) -> bool:
    """Whether there is a model trained without the forget set, to measure forget quality against."""
    return config.model.fine_tuning.num_epochs > 0 or getattr(config.model, "retain_model", None) is not None


def at_thresholds(config: RunConfig, gate_thresholds: Sequence[float]) -> list[RunConfig]:
    """The config, then the same module at each other gate threshold; just the config where there are no gates.

    Raises UserError where the threshold is chosen by another setting.
    """
    check_thresholds(config.adapter, gate_thresholds)
    if not config.adapter.is_gated:
        return [config]
    others = [tau for tau in dict.fromkeys(gate_thresholds) if tau != config.adapter.gate_threshold]
    return [config, *(at_threshold(config, tau) for tau in others)]


def at_threshold(config: RunConfig, gate_threshold: float | None) -> RunConfig:
    """The config at another gate threshold; None, or no gates: as it is."""
    if gate_threshold is None or not config.adapter.is_gated:
        return config
    return replace(config, adapter=replace(config.adapter, gate_threshold=gate_threshold))
