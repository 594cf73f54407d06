"""What may be searched under a key: a range of numbers, or a list of values; each may hold under a condition."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator, Discriminator, Tag

Conditions = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Range:
    """From one bound to another, both included."""

    low: float
    high: float
    log: bool = False
    """Search its logarithm."""
    when: Conditions = field(default_factory=dict)
    """Search it only where these keys have these values (or one of a list of values)."""

    def holds(self, value: Any) -> bool:
        """Whether Optuna could have suggested it."""
        return bool(self.low <= value <= self.high)

    def stored(self, value: Any) -> Any:
        """The value as Optuna's storage has it."""
        return value

    def examples(self) -> Sequence[Any]:
        """Values that show whether the whole range is valid."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class FloatRange(_Range):
    """A number between two bounds."""

    type: Literal["float"]

    def suggest(self, trial: Any, name: str) -> float:
        """Ask Optuna for a value."""
        return float(trial.suggest_float(name, self.low, self.high, log=self.log))


@dataclass(frozen=True, kw_only=True)
class IntRange(_Range):
    """A whole number between two bounds."""

    type: Literal["int"]
    low: int
    high: int

    def suggest(self, trial: Any, name: str) -> int:
        """Ask Optuna for a value."""
        return int(trial.suggest_int(name, self.low, self.high, log=self.log))


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One of a few values; lists (of layers, say) are values too."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Any, ...], MinLen(1)]
    when: Conditions = field(default_factory=dict)
    """Search it only where these keys have these values (or one of a list of values)."""

    def suggest(self, trial: Any, name: str) -> Any:
        """Ask Optuna for a value; choices travel as JSON, since Optuna's storage only takes scalars."""
        return json.loads(trial.suggest_categorical(name, [self.stored(choice) for choice in self.choices]))

    def holds(self, value: Any) -> bool:
        """Whether Optuna could have suggested it."""
        return value in self.choices

    def stored(self, value: Any) -> str:
        """The value as Optuna's storage has it."""
        return json.dumps(value)

    def examples(self) -> Sequence[Any]:
        """Values that show whether the whole range is valid."""
        return self.choices


Parameter = Annotated[
    Annotated[FloatRange, Tag("float")] | Annotated[IntRange, Tag("int")] | Annotated[Categorical, Tag("categorical")],
    Discriminator(lambda given: given.get("type") if isinstance(given, Mapping) else None),
]
Alternatives = Annotated[
    tuple[Parameter, ...], BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given])
]


def parameter_name(key: str, conditions: Conditions) -> str:
    """A parameter's name in Optuna: the dotted key, and its condition where it has one."""
    wanted = ", ".join(f"{on}={value}" for on, value in conditions.items())
    return f"{key} if {wanted}" if wanted else key
