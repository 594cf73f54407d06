"""What a kind of component must say of itself, checked when its class is defined and not when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

Component = TypeVar("Component", bound=type)


def declares(kind: type) -> Callable[[Component], Component]:
    """Class decorator: the class gives every class variable that the protocol `kind` annotates as one.

    Raises TypeError where one is missing, or is a value that its annotation does not allow.
    """
    wanted = {name: get_args(hint)[0] for name, hint in get_type_hints(kind).items() if get_origin(hint) is ClassVar}

    def check(component: Component) -> Component:
        for name, hint in wanted.items():
            if name not in vars(component):
                raise TypeError(f"{component.__name__} does not say what its {name} is; see {kind.__name__}")
            if not _allows(hint, value := vars(component)[name]):
                raise TypeError(f"{component.__name__}.{name} is {value!r}; it must be {hint}")
        return component

    return check


def _allows(hint: Any, value: Any) -> bool:
    return value in get_args(hint) if get_origin(hint) is Literal else isinstance(value, hint)
