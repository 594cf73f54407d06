"""Models that were unlearned elsewhere, to be scored like those unlearned here."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen

from bench.models.pretrained import load_tokenizer
from grun.errors import UserError
from grun.settings import LATER
from grun.unlearned import DESCRIPTION


@dataclass(frozen=True, kw_only=True)
class ExternalConfig:
    """A model that was unlearned elsewhere, to be put in the place of the target model."""

    method: Annotated[str, MinLen(1)]
    """What its method is called in tables."""
    model: Annotated[str, MinLen(1)]
    """Hub id, local folder or .gguf file, of the target's vocabulary. A PEFT checkpoint is merged into its base.
    Or an evaluation log, where `tool` says whose."""
    model_digest: str | None = field(default=None, metadata=LATER)
    """What a folder or file of that name holds; the command finds it out."""
    tool: Literal["open-unlearning"] | None = field(default=None, metadata=LATER)
    """What made the log that stands in place of the model: nothing can be asked anew. None: it is a model."""

    def check(self, target: str) -> None:
        """Raises UserError where it is of another vocabulary than the target model, has no tokenizer, or is a log."""
        if self.tool is not None:
            raise UserError(
                "external.model", f"{self.model} is a log, and cannot be asked; `grun-bench import` reads it"
            )
        if (Path(self.model) / DESCRIPTION).exists():
            problem = "holds a module of this package, and would be measured without it"
            raise UserError("external.model", f"{self.model} {problem}; use `grun-bench evaluate RESULTS/modules/KEY`")
        with blaming(self):
            same = load_tokenizer(self.model).get_vocab() == load_tokenizer(target).get_vocab()
        if not same:
            raise UserError("external.model", f"{self.model!r} has another vocabulary than the target model")


@contextlib.contextmanager
def blaming(external: ExternalConfig | None) -> Iterator[None]:
    """Inside, what is wrong with an external model is not said of the target model."""
    try:
        yield
    except UserError as error:
        if external is None or error.field != "model.name":
            raise
        raise UserError("external.model", error.problem) from error
