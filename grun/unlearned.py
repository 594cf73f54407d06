"""What was trained, on disk and back in use: save, load, generate.

from grun.unlearned import load
model = load("results/demo/modules/0123456789abcdef")
print(model.generate("Where was Birgit Karlsen born?"))
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, overload

from safetensors import SafetensorError

from grun.adapters import ADAPTERS, AdapterConfig
from grun.data import length_sorted_batches
from grun.errors import UserError
from grun.model.forward import Adapted, CausalLM, set_answer_ends
from grun.prompts.config import saved_prompt
from grun.prompts.template import PromptTemplate
from grun.sequential import DEPLOYMENT, load_deployment

DESCRIPTION = "adapter.json"
GENERATION_BATCH = 32


def save(adapted: Adapted, config: AdapterConfig, base: str | None, folder: Path) -> None:
    """Write what was trained (safetensors) and what is needed to load it (JSON).

    base: the model it was trained on, as a folder or a name that `transformers` can load, with `@REVISION` behind the
    name; None: it lies there too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save(cast(Any, adapted), folder)  # the object its own `attach` returned
    description = {"adapter": {**asdict(config), "name": ADAPTERS.name_of(config)}, "base": base}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load(folder: str | Path, model: CausalLM = None, tokenizer: Any = None) -> UnlearnedModel:
    """An unlearned model, ready to answer. folder: of one trained module, or a deployment (`grun.sequential`).

    model, tokenizer: the base model, if already loaded (it is taken over); None: loaded from where it was.
    Raises UserError where the folder or the base model cannot be read.
    """
    folder = Path(folder)
    config, base = (None, None) if (folder / DEPLOYMENT).exists() else described(folder)
    if model is None:
        model, tokenizer = _base(folder, base or str(folder))
    template = PromptTemplate.of(tokenizer, saved_prompt(folder))
    set_answer_ends(model, template)  # it is asked as it was when it was trained
    if config is None:
        return UnlearnedModel(load_deployment(folder, model.eval()), template)
    try:
        adapted = config.load(model.eval(), folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(str(folder), f"cannot be loaded as {DESCRIPTION} describes it ({reason})") from error
    return UnlearnedModel(adapted, template)


def described(folder: Path) -> tuple[Any, str | None]:
    """The config that a module was trained with, at the gate threshold that was chosen then; and its base, see `save`.

    Raises UserError where the folder holds none.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        name = description["adapter"].pop("name")
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in description["adapter"].items()}
        return ADAPTERS.named(name)(**settings), description["base"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(folder), f"holds no trained module ({type(error).__name__})") from error


def _base(folder: Path, name: str) -> tuple[CausalLM, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
    try:
        kinds = (AutoModelForCausalLM, AutoTokenizer)
        model, tokenizer = (kind.from_pretrained(source, revision=revision or None) for kind in kinds)
        return model, tokenizer
    except (OSError, ValueError) as error:
        raise UserError(str(folder), f"its base {name} cannot be loaded; pass model and tokenizer") from error


class UnlearnedModel:
    """A model with what it was trained to forget, asked in plain text."""

    def __init__(self, adapted: Adapted, template: PromptTemplate) -> None:
        self.adapted = adapted
        self.template = template

    @overload
    def generate(self, questions: str, max_new_tokens: int = 200) -> str: ...
    @overload
    def generate(self, questions: list[str], max_new_tokens: int = 200) -> list[str]: ...
    def generate(self, questions: str | list[str], max_new_tokens: int = 200) -> str | list[str]:
        """Greedy answers, one a question."""
        if isinstance(questions, str):
            return self.generate([questions], max_new_tokens)[0]
        prompts = [self.template.prompt_ids(question) for question in questions]
        answers = [""] * len(prompts)
        for rows in length_sorted_batches([len(prompt) for prompt in prompts], GENERATION_BATCH):
            generated = self.adapted.generate([prompts[row] for row in rows], max_new_tokens)
            for row, answer in zip(rows, generated.answers, strict=True):
                answers[row] = self.template.text(answer)
        return answers
