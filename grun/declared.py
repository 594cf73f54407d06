"""What a kind of component must say of itself, checked when its class is defined and not when it is first used."""

from collections.abc import Callable
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Component = TypeVar("Component", bound=type)


def declares(kind: type) -> Callable[[Component], Component]:
    """Class decorator: the class, or one that it inherits from, gives in some way all that the protocol `kind`
    annotates, and each of its properties.

    Raises TypeError where one is missing, or is a value that its annotation does not allow.
    """
    hints = get_type_hints(kind).items()
    wanted = {name: get_args(hint)[0] if get_origin(hint) is ClassVar else hint for name, hint in hints}
    wanted |= {name: object for name, member in vars(kind).items() if isinstance(member, property)}

    def check(component: Component) -> Component:
        said = {name: value for parent in reversed(component.__mro__) for name, value in vars(parent).items()}
        for name, hint in wanted.items():
            if name not in said:
                raise TypeError(f"{component.__name__} does not say what its {name} is; see {kind.__name__}")
            if not _allows(hint, said[name]):
                raise TypeError(f"{component.__name__}.{name} is {said[name]!r}; it must be {hint}")
        return component

    return check


def _allows(hint: Any, value: Any) -> bool:
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        return any(_allows(each, value) for each in get_args(hint))
    return value in get_args(hint) if kind is Literal else isinstance(value, kind or hint)
