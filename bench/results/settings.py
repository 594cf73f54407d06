"""Which runs compare: those of one benchmark, model and evaluation, told by content; what differs where they do not."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from bench.content import by_content
from bench.results import store
from bench.results.storage import Location
from grun.errors import UserError

TRAINED_ON = ("num_passages", "min_characters", "cyber_tokens")
"""What says which passages of WMDP are trained on, and nothing of what is asked."""


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain data of a config by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def setting(config_json: str) -> dict[str, Any]:
    """What runs must share to be compared: benchmark, model and evaluation, by content.

    Attacks are columns beside the others; how many sequences a pass has changes no score beyond float rounding. What is
    trained on is not measured, unless the model was taught it first.
    """
    config = json.loads(config_json)
    if config["model"].get("fine_tuning", {}).get("num_epochs") == 0:
        config["benchmark"] = {key: value for key, value in config["benchmark"].items() if key not in TRAINED_ON}
    evaluation = {key: value for key, value in config["evaluation"].items() if key not in ("robustness", "batch_size")}
    return by_content({"benchmark": config["benchmark"], "model": config["model"], "evaluation": evaluation})


def check_one_setting(config_jsons: Iterable[str]) -> None:
    """Raises UserError, with what differs, where not all of these runs can be compared."""
    settings = {json.dumps(each := setting(config), sort_keys=True): leaves(each) for config in config_jsons}
    if len(settings) < 2:
        return
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    values = {key: list(dict.fromkeys(as_text(each.get(key)) for each in settings.values())) for key in keys}
    differing = [f"{key}={' or '.join(seen)}" for key, seen in values.items() if len(seen) > 1]
    raise UserError(
        "RESULTS",
        f"holds runs of {len(settings)} benchmark, model or evaluation settings, which do not compare "
        f"({', '.join(differing[:3])}); choose with --where KEY=VALUE, or use one folder each",
    )


def setting_of(results: Location) -> dict[str, Any]:
    """Benchmark, model and evaluation of a folder's runs, as data of a config; nothing where it holds none.

    Raises UserError where there are several such settings.
    """
    if not (results / "runs").files(".parquet"):
        return {}
    configs = store.scan_runs(results).filter(status="ok")["config_json"].to_list()
    check_one_setting(configs)
    found = {key: json.loads(config)[key] for config in configs for key in ("benchmark", "model", "evaluation")}
    return {key: {k: v for k, v in section.items() if k != "robustness"} for key, section in found.items()}


def is_log(config_json: str) -> bool:
    """Whether a run is what another tool logged, so that nothing of it can be run again."""
    return (json.loads(config_json).get("external") or {}).get("tool") is not None


def as_text(value: Any) -> str:
    """A setting as it is written behind --where."""
    return value if isinstance(value, str) else json.dumps(value)
