"""Models that were unlearned elsewhere, to be scored like those unlearned here."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen

from bench.models.pretrained import ModelConfig, PretrainedConfig, load_tokenizer
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
        with blaming("external.model"):
            same = load_tokenizer(self.model).get_vocab() == load_tokenizer(target).get_vocab()
        if not same:
            raise UserError("external.model", f"{self.model!r} has another vocabulary than the target model")


def models_named(model: ModelConfig, external: ExternalConfig | None) -> dict[str, str]:
    """The models that a run reads as they are, by the settings that name them."""
    given = {"external.model": external.model if external and external.tool is None else None}
    if isinstance(model, PretrainedConfig):
        given["model.name"] = model.name if model.fine_tuning.num_epochs == 0 else None
        given["model.retain_model"] = model.retain_model
    return {setting: name for setting, name in given.items() if name is not None}


def check_models(model: ModelConfig, external: ExternalConfig | None) -> None:
    """Raises UserError where one that is named cannot be read, before hours are spent on the others."""
    for setting, name in models_named(model, external).items():
        if not (Path(name) / DESCRIPTION).exists():  # `ExternalConfig.check` says what is wrong with that
            with blaming(setting):
                load_tokenizer(name)


@contextlib.contextmanager
def blaming(setting: str) -> Iterator[None]:
    """Inside, what is wrong with a model is said of the setting that named it."""
    try:
        yield
    except UserError as error:
        if error.field != "model.name":
            raise
        raise UserError(setting, error.problem) from error
