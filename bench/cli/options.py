"""Options that several commands share, in groups, and what is made of them."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from bench.cli.parser import Parser, fields_of, from_options, option, share
from bench.results.storage import Location, location
from bench.runs.execution import Execution
from bench.studies.pool import Pool
from grun.errors import UserError

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.reports.comparison import Comparison

CONFIG_SECTIONS = (
    *("benchmark", "model", "start_from", "adapter", "forget_loss", "retain_loss"),
    *("training", "evaluation", "external", "seed"),
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
        numbers = isinstance(value, str) and re.fullmatch(r"[\d.,\s]*\d[\d.,\s]*", value)
        return yaml.safe_load(f"[{text}]") if numbers else value
    except yaml.YAMLError:
        raise UserError(option, f"{text!r} is not a value; quote it, or write a list as 2,3,5") from None


def _objective(text: str) -> tuple[str, str]:
    name, _, way = text.partition(":")
    if way not in ("max", "min"):
        raise UserError("--objectives", f"{text} has no direction; write {name}:max or {name}:min")
    return name, way


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals:
        raise UserError("--where", f"{text} is not KEY=VALUE")
    return column, value


def settings(parser: Parser) -> None:
    """The command takes RunConfig keys."""
    says = "--KEY VALUE, e.g. --adapter lora --adapter.r 8; `grun-bench keys` lists them"
    parser.add_argument_group("settings", says)
    parser.set_defaults(settings={})


def compared(parser: Parser) -> None:
    """Which runs, and by what."""
    group = parser.add_argument_group("what is compared")
    says = "two or three; default: the benchmark's own"
    group.add_argument("--objectives", nargs="+", type=_objective, metavar="METRIC:max|min", help=says)
    says = "only these runs, by column or setting"
    group.add_argument("--where", nargs="+", type=_condition, metavar="K=V", default=[], help=says)
    says = "a method's best runs keep this share of the target's utility (0.95)"
    group.add_argument("--utility-kept", type=share, metavar="X", default=0.95, help=says)


FILE = option("file", nargs="?", metavar="FILE", help="settings as YAML; those given as options win")
FOLDER = option("folder", metavar="RESULTS", help="results folder: a path, s3:// or gs://")
RESULTS = option(
    "--results", metavar="RESULTS", default="results/default", help="a path, s3:// or gs:// (default: %(default)s)"
)
ONE_RUN = (FILE, settings)
COMPARED_RUNS = (FOLDER, compared)
WHERE_IT_RUNS = fields_of("where and how it runs", Execution, ("results", "save_module"))
POOL = (fields_of("how many at once, and how long", Pool), WHERE_IT_RUNS)
SPACES = option("files", nargs="+", metavar="FILE", help="of search_spaces/, or a name that `spaces` lists")
STUDIES = (
    SPACES,
    settings,
    RESULTS,
    *POOL,
)
GATE_THRESHOLDS = option(
    "--gate-thresholds", type=share, nargs="+", metavar="X", default=[], help="evaluate the module at these too"
)
ROBUSTNESS = option(
    "--robustness",
    dest="settings",
    action="store_const",
    const={"evaluation.robustness": {}},
    help="also attack the model; --evaluation.robustness.KEY says how",
)


class Options(argparse.Namespace):
    """What a command was given, RunConfig keys under `settings`; and what is made of the options that are shared."""

    def execution(self, folder: "str | Location | None" = None) -> Execution:
        """Of WHERE_IT_RUNS. folder: of the results, in place of --results."""
        # Absolute: a worker need not run where this command does.
        return from_options(Execution, self, results=location(folder or self.results))

    def pool(self) -> Pool:
        """Of POOL."""
        return from_options(Pool, self)

    def run_config(self) -> "RunConfig":
        """Of ONE_RUN: the file, with settings on top."""
        from bench.config import overlay, run_config
        from bench.files import read_yaml

        return run_config(overlay(read_yaml(self.file) if self.file else {}, self.settings))

    def spaces(self) -> list[str]:
        """Of STUDIES: the files that are meant."""
        from bench.spaces.shipped import space_file

        return [space_file(word) for word in self.files]

    def setting(self, results: Location) -> dict[str, Any]:
        """Data of a config for what is to stand beside a folder's runs: of their benchmark, model and evaluation, but
        for what is said otherwise; where a benchmark or a model is named, of what is said alone."""
        from bench.config import overlay
        from bench.results.settings import setting_of

        is_named = any(key.split(".")[0] in ("benchmark", "model") for key in self.settings)
        return overlay({} if is_named else setting_of(results), self.settings)

    def comparison(self) -> "Comparison":
        """Of COMPARED_RUNS."""
        objectives = None if self.objectives is None else dict(self.objectives)
        if objectives is not None and not 2 <= len(objectives) <= 3:
            raise UserError("--objectives", f"{len(objectives)} given; name two or three")
        from bench.reports.comparison import compare

        return compare(self.folder, objectives, dict(self.where), self.utility_kept, _whole)


def _whole(config_json: str) -> Mapping[str, Any]:
    """A run's settings, with those that it has by default; only asked where one is named that is not written down."""
    from bench.config import stored_config  # adapters and losses, and seconds of imports

    written = json.loads(config_json)
    try:
        return asdict(stored_config(written))
    except UserError:  # of somebody's own adapter that is not installed here
        return written
