"""Losses and adapters by name: our own, and those that live outside this repository.

Another package offers one under an entry point of the group, or is named as `package.module:Class`:

    [project.entry-points."grun.forget_losses"]
    mine = "my_package.my_file:MyLossConfig"

Checked like our own (`grun.declared`); `grun.testing` has the contracts that it should keep.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
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

    def named(self, name: str) -> Any:
        """The config class; None where nothing is called that.

        Raises UserError where it is one from outside that cannot be imported, or does not say what it must.
        """
        found = [kind for kind in self.own if kind.name == name]
        offered = entry_points(group=self.group, name=name) if not found else ()
        if found or not (":" in name or offered):
            return found[0] if found else None
        path = next(iter(offered)).value if offered else name
        module, _, attribute = path.partition(":")
        try:
            return declares(self.kind)(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, TypeError) as error:
            raise UserError(self.field, f"{path} cannot be used ({error}); mend it, or the PYTHONPATH") from error

    def name_of(self, config: Any) -> str:
        """By which `named` finds a config's class again, wherever it was found: of those from outside, the path."""
        kind = type(config)
        return str(kind.name) if kind in self.own else f"{kind.__module__}:{kind.__qualname__}"
