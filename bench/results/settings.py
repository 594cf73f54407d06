"""Which runs compare: those of one benchmark, model and evaluation, told by content; what differs where they do not."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import polars as pl

from bench.content import by_content
from bench.results import store
from bench.results.storage import Folder, Location
from grun.errors import UserError

TRAINED_ON = ("num_passages", "min_characters", "cyber_tokens")
"""What says which passages of WMDP are trained on, and nothing of what is asked."""

Whole = Callable[[str], Mapping[str, Any]]
"""config_json → all settings of a run, those that it has by default and are not written down among them."""


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


def chosen_rows(results_folder: Folder, where: Mapping[str, str], whole: Whole) -> list[dict[str, Any]]:
    """Rows of all runs that `where` leaves, and of what they are measured with, oldest first.

    Raises UserError where a name is unknown, or nothing is left.
    """
    runs = everything = store.scan_runs(results_folder)
    for column, value in where.items():
        if "." in column:
            found = [_setting_with(column, config, whole) for config in runs["config_json"]]
            if found and not any(column in each for each in found):
                raise UserError("--where", f"no run has a setting {column}; `grun-bench keys` lists them")
            is_chosen = [as_text(each.get(column)) == value for each in found]
            runs = runs.filter(pl.Series(is_chosen, dtype=pl.Boolean))
            continue
        if column not in runs.columns:
            raise UserError("--where", f"runs have no column {column}; use one of {', '.join(runs.columns[:12])}, …")
        runs = runs.filter(pl.col(column).cast(pl.String) == value)
    if runs.is_empty():
        raise UserError("RESULTS", f"no run in {results_folder} matches; run a sweep, or change --where")
    chosen, settings = set(runs["run_key"]), [setting(config) for config in runs["config_json"]]
    return [
        row
        for row in everything.sort("created_at").to_dicts()
        if row["run_key"] in chosen or (row["adapter"] == "none" and setting(row["config_json"]) in settings)
    ]


def _setting_with(key: str, config_json: str, whole: Whole) -> dict[str, Any]:
    written = leaves(json.loads(config_json))
    return written if key in written else leaves(whole(config_json))


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
