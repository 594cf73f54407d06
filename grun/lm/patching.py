"""Change what a module does for as long as a `with` block lasts.

Not forward hooks: those cannot skip a module's own work, and pyvene removes every hook of a model whenever it runs.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from pyvene_custom.editing import decoder_layers_path


@contextlib.contextmanager
def patched(replacements: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, calling a module calls its replacement with the same arguments."""
    with contextlib.ExitStack() as after:
        for module, replacement in replacements:
            before = vars(module).get("forward")
            if before is None:
                after.callback(delattr, module, "forward")
            else:
                after.callback(setattr, module, "forward", before)
            module.forward = replacement
        yield


def output_tensor(output: Any) -> Any:
    """The hidden states in what a decoder layer returns: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_output_tensor(output: Any, hidden: Any) -> Any:
    """What a decoder layer returned, with other hidden states in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder's list of layers; model: a `transformers` causal LM. Raises ValueError where it has none."""
    return model.get_submodule(decoder_layers_path(model))
