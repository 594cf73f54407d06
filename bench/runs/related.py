"""Which runs belong together: what a run is measured with, and its module at other gate thresholds."""

from collections.abc import Sequence
from dataclasses import replace

from bench.config import RunConfig, run_config
from bench.models.prepare import StartFrom
from grun.gates.openings import check_thresholds


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
