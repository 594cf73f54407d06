"""What stands around a question: the settings of a prompt, checked when they are made. Imports no model code."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from grun.errors import UserError

QUESTION, ANSWER = "{question}", "{answer}"
FILE = "prompt.json"
"""In the folder of something trained: how it is asked, where that is not its tokenizer's own way."""
DATE_FORMAT = "%d %b %Y"
DIRECTIVES = tuple(f"%{letter}" for letter in "aAbBcdHIjmMpSuUVwWxXyY")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a model is asked: the same in training, scoring and generation."""

    style: Literal["auto", "chat", "plain"] = "auto"
    """`chat`: the tokenizer's own chat template; `plain`: `text`; `auto`: chat where the tokenizer has a template."""
    text: str = f"Question: {QUESTION}\nAnswer: {ANSWER}"
    """A plain prompt and its answer. Blanks before {answer} are the answer's first, as tokenizers join them to it."""
    system: str | None = None
    """What stands before all: a chat's system message, or a plain paragraph. None: the chat template's own, if any."""
    examples: tuple[tuple[str, str], ...] = ()
    """(question, answer) of each example that is shown before the question: as turns of a chat, or as paragraphs."""
    date: str = "26 Jul 2024"
    """What a chat template that asks for today's date is told, as in `10 Apr 2025`: a prompt that changed overnight
    would make what is cached another model's."""
    turn_end: str | None = None
    """The token that ends an answer. None: the one that the chat template ends a turn with; in plain prompts EOS."""
    max_tokens: Annotated[int, Ge(1)] | None = None
    """A prompt of more tokens loses the beginning of its question. None: no prompt loses anything."""

    def __post_init__(self) -> None:
        """Raises UserError where the text has no place for question and answer, or the date cannot be read."""
        before, *after = self.text.split(ANSWER)
        if after != [""] or before.count(QUESTION) != 1:
            raise UserError("model.prompt.text", f"must have {QUESTION} once, and end in {ANSWER} (got {self.text!r})")
        try:
            _ = self.day_by_directive
        except ValueError:
            raise UserError("model.prompt.date", f"must be like '10 Apr 2025' (got {self.date!r})") from None

    @property
    def day_by_directive(self) -> dict[str, str]:
        """The date for templates that want another form: directive of strftime → what it stands for."""
        day = datetime.strptime(self.date, DATE_FORMAT)
        unpadded = {"%-d": str(day.day), "%-m": str(day.month)}
        return unpadded | {directive: day.strftime(directive) for directive in DIRECTIVES}

    def save(self, folder: Path) -> None:
        """Write it beside what was trained with it."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def saved_prompt(folder: Path) -> PromptConfig | None:
    """What `save` wrote; None where there is none. Raises UserError where it cannot be read."""
    if not (folder / FILE).exists():
        return None
    try:
        settings = json.loads((folder / FILE).read_text())
        return PromptConfig(**settings | {"examples": tuple(tuple(pair) for pair in settings["examples"])})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(folder / FILE), f"is no prompt ({type(error).__name__}); train again") from error
