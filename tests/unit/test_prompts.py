"""Prompts and answers as token ids, on tokenizers of every kind."""

import hashlib
import json
from itertools import product

from bench.benchmarks.authors import AuthorsConfig
from bench.models.pretrained import TinyConfig, new_tiny_model
from grun.prompts import PromptTemplate

ODD = ("", " ", "  two", "\nline", "?", "'s", "é́", "Анна 3 пилы", "日本語", "a\n\nb ", "\n\n x", "…", "```py\n x=1")
"""Texts that begin or end where a tokenizer might join them to what stands beside them."""


def digests(template: PromptTemplate) -> list[str]:
    """Of all token ids of five authors' items, and of every odd question with every odd answer."""
    authors = AuthorsConfig(num_authors=5).load()
    items = [*authors.forget_set, *authors.retain_set, *authors.knowledge_set]
    found = []
    for pairs in ([item.pair for item in items], product(ODD, ODD)):
        examples = [template.example(question, answer) for question, answer in pairs]
        ids = [[list(example.prompt_ids), list(example.answer_ids)] for example in examples]
        found.append(hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16])
    return found


def test_the_tiny_models_token_ids_stay_as_they_are() -> None:
    """Measured before prompts had settings: TOFU's scores equal the field's on these very sequences."""
    authors = AuthorsConfig(num_authors=5).load()
    items = [*authors.forget_set, *authors.retain_set, *authors.knowledge_set]
    smallest = TinyConfig(num_layers=1, hidden_size=8, num_heads=1, vocab_size=600)
    _, tokenizer = new_tiny_model(smallest, [text for item in items for text in item.pair])
    assert digests(PromptTemplate.of(tokenizer)) == ["c0c46e9ea4a9c206", "168d9cf42edc7b16"]
