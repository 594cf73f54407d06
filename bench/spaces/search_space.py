"""search_spaces/*.yaml → a study: a base RunConfig, what to search, what to optimise, how long."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, MaxLen, MinLen

from bench.config import RunConfig, overlay, run_config, stored_config
from bench.content import by_content
from bench.files import read_yaml
from bench.results.columns import check_objectives
from bench.results.settings import leaves
from bench.spaces.parameters import (
    Alternatives,
    Categorical,
    Conditions,
    FloatRange,
    IntRange,
    Parameter,
    parameter_name,
)
from bench.splits import Direction
from bench.validation import validated
from grun.errors import UserError
from grun.gates.openings import check_thresholds

Kind = TypeVar("Kind")
THRESHOLD = "adapter.gate_threshold"


@dataclass(frozen=True, kw_only=True)
class Search:
    """Runs that are alike but for what is searched."""

    study: Annotated[str, MinLen(1)]
    """Its name, in Optuna's storage and in the `study` column."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """A RunConfig; what is left out takes its default."""
    search_space: Mapping[str, Alternatives]
    """Dotted RunConfig key → parameter; several under one key need a `when` that tells them apart."""
    gate_thresholds: Sequence[float] = ()
    """Further gate thresholds to evaluate every trained module at, without training again."""
    initial_points: Sequence[Mapping[str, Any]] = ()
    """Values to try first, by dotted key; what is left out is sampled."""
    seed: int = 0
    """Seed of the sampler."""

    def sample(self, trial: Any) -> dict[str, Any]:
        """Dotted key → value, for one Optuna trial (or a FixedTrial, to read its parameters back)."""
        chosen: dict[str, Any] = {}
        for key in self._conditions_first():
            for name, parameter in self.parameters(key).items():
                if self._applies(parameter.when, chosen):
                    chosen[key] = parameter.suggest(trial, name)
        return chosen

    def run(self, chosen: Mapping[str, Any]) -> RunConfig:
        """The base with the chosen values. Raises UserError where they do not make a valid run."""
        return run_config(overlay(self.base, chosen))

    def definition(self) -> dict[str, Any]:
        """What the study's trials have in common, and what tells them apart, as plain data."""
        space = {key: [asdict(parameter) for parameter in each] for key, each in self.search_space.items()}
        return json.loads(json.dumps({"base": self.run({}).to_dict(), "search_space": space}))

    def initial_parameters(self) -> list[dict[str, Any]]:
        """`initial_points` under the names and in the form Optuna stores them."""
        return [
            {
                name: parameter.stored(value)
                for key, value in point.items()
                for name, parameter in self.parameters(key).items()
                if self._applies(parameter.when, point)
            }
            for point in self.initial_points
        ]

    def _conditions_first(self) -> list[str]:
        """The searched keys as the file has them, but each after those that decide whether it is searched."""
        ordered: dict[str, None] = {}
        waiting: set[str] = set()

        def add(key: str) -> None:
            if key in self.search_space and key not in waiting:
                waiting.add(key)
                for parameter in self.search_space[key]:
                    for on in parameter.when:
                        add(on)
                ordered[key] = None

        for key in self.search_space:
            add(key)
        return list(ordered)

    def parameters(self, key: str) -> dict[str, FloatRange | IntRange | Categorical]:
        """What is searched under a key, by its name in Optuna."""
        return {parameter_name(key, parameter.when): parameter for parameter in self.search_space.get(key, ())}

    def _applies(self, conditions: Conditions, chosen: Mapping[str, Any]) -> bool:
        base = leaves(asdict(self.run({}))) if conditions.keys() - chosen.keys() else {}
        for key, wanted in conditions.items():
            value = chosen[key] if key in chosen else base.get(key, base.get(f"{key}.name"))
            if value not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Search):
    """One study, or one for each value of a key."""

    objectives: Annotated[Mapping[str, Direction], MinLen(2), MaxLen(3)] = field(
        default_factory=lambda: {"log10_forget_quality": "max", "model_utility": "max"}
    )
    """Metric → max or min."""
    num_trials: Annotated[int, Ge(1)] = 50
    """Trainings a study."""
    one_study_per: str | None = None
    """A categorical key: each of its choices gets a study of its own, with the whole budget."""
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    """Optuna's sampler."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two definitions, as text; empty where nothing does.

    A setting that an earlier version did not have had its default.
    """
    was = {**before, "base": stored_config(before["base"]).to_dict()}
    old, new = (leaves(by_content(json.loads(json.dumps(each)))) for each in (was, now))
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    named = [
        f"{key.removeprefix('base.')} {json.dumps(old.get(key))}, not {json.dumps(new.get(key))}" for key in changed[:3]
    ]
    return "; ".join(named) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def read_studies(path: str, overrides: Mapping[str, Any], num_trials: int | None) -> list[SweepConfig]:
    """The studies of a search-space file, each checked at the ends of all its ranges.

    overrides: dotted RunConfig keys, which hold in every run. num_trials: in place of the file's own.
    Raises UserError naming the file and the field.
    """
    config = read_space(path, overrides, num_trials)
    studies = _split(path, config)
    check_objectives(f"{path}: objectives", config.objectives)
    for study in studies:
        check_study(path, study, overrides)
    return studies


def read_space(path: str, overrides: Mapping[str, Any], num_trials: int | None) -> SweepConfig:
    """A search-space file as it stands, with what the command line says laid in. Arguments: see `read_studies`."""
    config = read_as(SweepConfig, path)
    return replace(config, **laid_in(config, overrides), num_trials=num_trials or config.num_trials)


def laid_in(config: Search, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a search-space file of any kind under settings from the command line, which hold in every run of it.

    What is searched under such a key is that value alone, in the initial points, too; those of another choice are left
    out where some are of this one. Where the file searches what the setting belongs to (`adapter`, and the setting is
    `adapter.learning_rate`), it holds beside each choice.
    """
    space = dict(config.search_space)
    held, others = {}, {}
    for key, value in overrides.items():
        name = key.removesuffix(".name") if key.removesuffix(".name") in space else key
        if name in space:
            conditions = [parameter.when for parameter in space[name]]
        elif key.partition(".")[0] in space:
            conditions = [{}]
        else:
            others[key] = value
            continue
        held[name] = value
        space[name] = tuple(Categorical(type="categorical", choices=(value,), when=when) for when in conditions)
    points = list(config.initial_points)
    for key, value in held.items():
        if all(isinstance(parameter, Categorical) for parameter in config.search_space.get(key, ())):
            points = [point for point in points if point.get(key, value) == value] or points
        points = [{**point, key: value} if key in point else point for point in points]
    return {"base": overlay(config.base, others), "search_space": space, "initial_points": points}


def read_as(kind: type[Kind], path: str) -> Kind:
    """A YAML file as one of the dataclasses that describe studies. Raises UserError naming the file and the field."""
    return validated(kind, read_yaml(path), lambda field: f"{path}: {field}")


def _split(path: str, config: SweepConfig) -> list[SweepConfig]:
    key = config.one_study_per
    if key is None:
        return [config]
    parameters = config.search_space.get(key, ())
    if len(parameters) != 1 or not isinstance(parameters[0], Categorical):
        raise UserError(f"{path}: one_study_per", f"{key} is not a categorical key of search_space; name one")
    rest = {name: alternatives for name, alternatives in config.search_space.items() if name != key}
    return [
        replace(
            config,
            study=f"{config.study}/{choice}",
            base=overlay(config.base, {key: choice}),
            search_space=rest,
            initial_points=[
                {name: value for name, value in point.items() if name != key}
                for point in config.initial_points
                if point.get(key, choice) == choice
            ],
        )
        for choice in parameters[0].choices
    ]


def check_study(  # noqa: C901 (checks, one after the other)
    path: str, config: Search, overrides: Mapping[str, Any]
) -> None:
    """Try the base, every end of every range and every initial point as a run. overrides: what is not the file's own.

    Raises UserError naming the file, where the fault is in it.
    """

    def tried(where: str, chosen: Mapping[str, Any]) -> None:
        try:
            check_thresholds(config.run(chosen).adapter, config.gate_thresholds)
        except UserError as error:
            if error.field in overrides:
                raise
            raise UserError(f"{path}: {where}", str(error)) from None

    tried("base", {})
    for key, alternatives in config.search_space.items():
        for parameter in alternatives:
            _check_range(f"{path}: {key}", parameter)
            for given in _where_searched(config, key, parameter):
                for example in parameter.examples():
                    tried("search_space", {**given, key: example})
    for tau in config.gate_thresholds:
        if not 0 <= tau <= 1:
            raise UserError(f"{path}: gate_thresholds", f"{tau} is not a gate value; use 0 to 1")
    for point in config.initial_points:
        unknown = set(point) - set(config.search_space)
        if unknown:
            raise UserError(
                f"{path}: initial_points", f"{unknown.pop()} is not in search_space; add it or leave it out"
            )
        tried("initial_points", point)


def _check_range(where: str, parameter: Parameter) -> None:
    if isinstance(parameter, Categorical):
        return
    if parameter.low > parameter.high:
        raise UserError(where, f"low {parameter.low} is above high {parameter.high}; swap them")
    if parameter.log and parameter.low <= 0:
        raise UserError(where, f"low {parameter.low} has no logarithm; use more than 0")


def _where_searched(config: Search, key: str, parameter: Parameter) -> list[dict[str, Any]]:
    """What else is chosen where a key is searched: its conditions, and every choice of what it is a setting of."""
    whole = key.partition(".")[0]
    decided = {on: value if isinstance(value, list) else [value] for on, value in parameter.when.items()}
    if whole not in (key, *decided):
        named = [each for each in config.search_space.get(whole, ()) if isinstance(each, Categorical)]
        decided |= {whole: choices} if (choices := [choice for each in named for choice in each.choices]) else {}
    return [dict(zip(decided, values, strict=True)) for values in product(*decided.values())]
