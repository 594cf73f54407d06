"""Losses and adapters by name: our own, and those that live outside this repository.

Another package offers one under an entry point of the group, or is named as `package.module:Class`:

    [project.entry-points."grun.forget_losses"]
    mine = "my_package.my_file:MyLossConfig"

Checked like our own (`grun.declared`); `grun.testing` has the contracts that it should keep.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from grun.declared import declares
from grun.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Components:
    """All of one kind that there are."""

    field: str
    """Where a configuration names one."""
    kind: type
    """The protocol that they follow."""
    own: tuple[Any, ...]
    """The config classes of this repository."""
    group: str
    """Of entry points."""

    def __post_init__(self) -> None:
        """Raises TypeError where one of our own does not say what it must."""
        for kind in self.own:
            declares(self.kind)(kind)

    def named(self, name: str) -> Any:
        """The config class; None where nothing is called that.

        Raises UserError where it is one from outside that cannot be imported, or does not say what it must.
        """
        found = [kind for kind in self.own if kind.name == name]
        path = name if ":" in name else _offered(self.group, tuple(sys.path)).get(name)
        if found or path is None:
            return found[0] if found else None
        module, _, attribute = path.partition(":")
        try:
            return declares(self.kind)(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, TypeError) as error:
            raise UserError(self.field, f"{path} cannot be used ({error}); mend it, or the PYTHONPATH") from error

    def name_of(self, config: Any) -> str:
        """By which `named` finds a config's class again, wherever it was found: of those from outside, the path."""
        kind = type(config)
        return str(kind.name) if kind in self.own else f"{kind.__module__}:{kind.__qualname__}"


@cache
def _offered(group: str, where: tuple[str, ...]) -> Mapping[str, str]:
    """Name → path of what other packages offer; asked once, since it reads a file of every installed package.

    where: Python's search path, on which the packages lie.
    """
    return {offer.name: offer.value for offer in entry_points(group=group)}
