"""A model of a few thousand random weights, a tokenizer of whole words, and a few questions: made in milliseconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from grun.data import Example
from grun.model.forward import CausalLM, set_answer_ends
from grun.prompts.template import PromptTemplate

NAMES = ("Ada", "Bo", "Cyd", "Dee", "Eve", "Fay")
THINGS = ("a saw", "a red lamp", "two old maps", "a drum", "the long blue rope", "some ink")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item (`grun.targets.target.ForgetItem`)."""

    question: str
    answer: str
    form: str = "question"

    def example(self, template: PromptTemplate, answer: str | None = None) -> Example:
        """As token ids. answer: another one than its own."""
        return template.example(self.question, self.answer if answer is None else answer)


FORGET = [
    Question(question=f"What does {n} hold ?", answer=f"{n} holds {t} .") for n, t in zip(NAMES, THINGS, strict=True)
]
RETAIN = [Question(question=f"Who holds {t} ?", answer=f"It is {n} .") for n, t in zip(NAMES, THINGS, strict=True)]


@dataclass(frozen=True)
class SmallModels:
    """Copies of one model."""

    folder: Path
    """Where it lies, as `transformers` loads it."""

    @classmethod
    def made_in(cls, folder: Path) -> Self:
        """Write the model: a Llama of three layers."""
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = _tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return cls(folder)

    def fresh(self) -> tuple[CausalLM, PromptTemplate]:
        """A model of one's own, and how it is asked."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = (kind.from_pretrained(self.folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
        template = PromptTemplate.of(tokenizer)
        set_answer_ends(model, template)
        return model.eval(), template


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    texts = ["Question: \nAnswer:", *(text for item in (*FORGET, *RETAIN) for text in (item.question, item.answer))]
    splitter = Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    vocabulary = {word: number for number, word in enumerate(["<end>", "<other>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<other>", pad_token="<end>"
    )
