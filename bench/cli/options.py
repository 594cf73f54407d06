"""Options that several commands share, in groups, and what is made of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from bench.cli.parser import Parser, add_fields, from_options, share
from bench.results.storage import Location, location
from bench.runs.execution import Execution
from bench.studies.pool import Pool
from grun.errors import UserError

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.reports.comparison import Comparison

DEFAULT_RESULTS = "results/default"
CONFIG_SECTIONS = (
    "benchmark",
    "model",
    "start_from",
    "adapter",
    "forget_loss",
    "retain_loss",
    "training",
    "evaluation",
    "seed",
)
"""Fields of RunConfig, which itself takes seconds to import; an option that begins with one of them is a setting."""


def split_settings(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Command words, and RunConfig keys with their values: YAML, or several values with commas between."""
    kept: list[str] = []
    settings: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or key.split(".")[0] not in CONFIG_SECTIONS:
            kept.append(word)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(option, "has no value; write one behind it")
            value = rest.pop(0)
        settings[key] = _value(option, value)
    return kept, settings


def _value(option: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return yaml.safe_load(f"[{text}]") if isinstance(value, str) and re.fullmatch(r"[\d.,\s]+", value) else value
    except yaml.YAMLError:
        raise UserError(option, f"{text!r} is not a value; quote it, or write a list as 2,3,5") from None


def settings(parser: Parser) -> None:
    """The command takes RunConfig keys."""
    parser.add_argument_group(
        "settings", "--KEY VALUE, e.g. --adapter lora --adapter.r 8; `grun-bench keys` lists them"
    )
    parser.set_defaults(settings={})


def config_file(parser: Parser) -> None:
    """One RunConfig, from a file and from settings."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="settings as YAML; those given as options win")
    settings(parser)


def run_config(options: argparse.Namespace, settings: Mapping[str, Any]) -> RunConfig:
    """The file of `config_file`, with settings on top."""
    from bench.config import overlay, run_config
    from bench.files import read_yaml

    return run_config(overlay(read_yaml(options.file) if options.file else {}, settings))


def results(parser: Parser) -> None:
    """Where results are written."""
    parser.add_argument(
        "--results", metavar="RESULTS", default=DEFAULT_RESULTS, help="a path, s3:// or gs:// (default: %(default)s)"
    )


def where_it_runs(parser: Parser) -> None:
    """The fields of an Execution."""
    add_fields(parser.add_argument_group("where and how it runs"), Execution, ("results", "save_module"))


def execution(options: argparse.Namespace, folder: str | Location | None = None) -> Execution:
    """What `where_it_runs` says. folder: of the results, in place of --results."""
    # Absolute: a worker need not run where this command does.
    return from_options(Execution, options, results=location(folder or options.results))


def pool(parser: Parser) -> None:
    """The fields of a Pool, and how each of its trials runs."""
    trials = parser.add_argument_group("how many at once, and how long")
    add_fields(trials, Pool)
    of_pool = ("cpus_per_worker", "gpus_per_worker")
    machine = parser.add_argument_group("where and how each runs")
    add_fields(machine, Execution, ("results", "save_module", *of_pool))


def pool_of(options: argparse.Namespace) -> Pool:
    """What `pool` says."""
    return from_options(Pool, options)


def gate_thresholds(parser: Parser) -> None:
    """A curve of thresholds from one module."""
    parser.add_argument(
        "--gate-thresholds",
        type=share,
        nargs="+",
        metavar="X",
        default=[],
        help="evaluate the module at these too",
    )


def robustness(parser: Parser) -> None:
    """Attacks."""
    parser.add_argument(
        "--robustness", action="store_true", help="also attack the model; --evaluation.robustness.KEY says how"
    )


def attacked(options: argparse.Namespace) -> Mapping[str, Any]:
    """The settings, with attacks where --robustness asks for them."""
    return {"evaluation.robustness": {}, **options.settings} if options.robustness else options.settings


def results_folder(parser: Parser) -> None:
    """The folder that a command reads."""
    parser.add_argument("folder", metavar="RESULTS", help="results folder: a path, s3:// or gs://")


def compared_runs(parser: Parser) -> None:
    """Runs to compare, and by what."""
    results_folder(parser)
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--objectives", nargs="+", metavar="METRIC:max|min", help="two or three; default: the benchmark's own"
    )
    group.add_argument(
        "--where",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="only these runs: a column, or a setting such as benchmark.seed",
    )


def comparison(options: argparse.Namespace) -> Comparison:
    """What `compared_runs` names."""
    objectives, where = _objectives(options.objectives), _where(options.where)
    from bench.reports.comparison import compare

    return compare(options.folder, objectives, where)


def _objectives(pairs: Sequence[str] | None) -> Any:
    if pairs is None:
        return None
    objectives = {}
    for pair in pairs:
        name, _, way = pair.partition(":")
        if way not in ("max", "min"):
            raise UserError("--objectives", f"{pair} has no direction; write {name}:max or {name}:min")
        objectives[name] = way
    if not 2 <= len(objectives) <= 3:
        raise UserError("--objectives", f"{len(objectives)} given; name two or three")
    return objectives


def _where(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError("--where", f"{pair} is not KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
