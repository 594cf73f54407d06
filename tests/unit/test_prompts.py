"""Prompts and answers as token ids, on tokenizers of every kind."""

import dataclasses
import hashlib
import json
from itertools import count, product
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.benchmarks.authors import AuthorsConfig
from bench.models.pretrained import TinyConfig, new_tiny_model
from grun.data import Example
from grun.errors import UserError
from grun.lm.reading import eos_ids
from grun.model.forward import set_answer_ends
from grun.prompts.config import PromptConfig
from grun.prompts.template import PromptTemplate

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


PIECES = ["<unk>", "<s>", "</s>", " ", " Question", ":", " Who", "?", "\n", "Answer", " Ada", "Ada", "Question", "Who"]
PIECES += ["<|user|>", "<|assistant|>", "<|end|>", "ASK", " ASK", " REPLY"]
"""What the tokenizers below make whole tokens of: 0 to 13 for plain prompts, 14 to 16 special, 17 to 19 for a chat
without special tokens."""
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
END = PIECES.index("<|end|>")
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A chat whose turns end in <|end|>, while the tokenizer's EOS is </s>."""
KINDS = ["byte-level BPE", "BPE never", "BPE first", "BPE always", "BPE old", "Unigram never", "Unigram first"]
KINDS += ["Unigram always", "Unigram old"]
"""SentencePiece's kinds by where they put a blank of their own: nowhere, before a text, before each stretch between
special tokens; `old` is the last as older tokenizer files have it, even where a blank is there already."""


def tokenizer_of(kind: str, chat_template: str | None = None, *, adds_eos: bool = False) -> Any:
    """A tokenizer of PIECES; each is id PIECES.index(piece). It puts <s> before a text."""
    model_kind, blank = kind.rsplit(" ", 1)
    marks = {" ": "Ġ", "\n": "Ċ"} if blank == "BPE" else {" ": "▁"}
    pieces = ["".join(marks.get(character, character) for character in piece) for piece in PIECES]
    if model_kind == "Unigram":
        letters = sorted(set("".join(pieces)) - set(pieces))
        scored = [(piece, 0.0) for piece in pieces] + [(letter, -9.0) for letter in letters]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    else:
        # A word is put together from the left; its beginnings are tokens, too.
        whole = [piece for piece in pieces if piece not in SPECIAL]
        starts = [word[:end] for word in whole for end in range(2, len(word) + 1)]
        merges = [(start[:-1], start[-1]) for start in dict.fromkeys(starts)]
        vocabulary = dict.fromkeys([*pieces, *"".join(whole), *starts])
        tokenizer = Tokenizer(models.BPE(dict(zip(vocabulary, count(), strict=False)), merges, unk_token="<unk>"))
    if blank == "BPE":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif blank == "old":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=blank)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=blank)
    around = "<s> $A </s>" if adds_eos else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    made.chat_template = chat_template
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompt_token_by_token(kind: str) -> None:
    """ "Question: Who?\\nAnswer:" is <s>, Question, :, " Who", ?, a line break, Answer, :, that is
    1 12 5 6 7 8 9 5, with " Question" (4) for 12 where the tokenizer puts a blank before a text. The answer " Ada"
    begins with one blank, never two: 10, then </s> (2). An older SentencePiece tokenizer, asked for " Ada" by itself,
    gives 3 10."""
    template = PromptTemplate.of(tokenizer_of(kind))
    question = 12 if kind.endswith(("BPE", "never")) else 4
    assert template.prompt_ids("Who?") == (1, question, 5, 6, 7, 8, 9, 5)
    assert template.answer_ids("Ada") == (10, 2)
    assert template.text((10,)) == "Ada"


@pytest.mark.parametrize("kind", KINDS)
def test_chat_prompt_token_by_token(kind: str) -> None:
    """<s> <|user|> line Who ? <|end|> line <|assistant|> line is 1 14 8 13 7 16 8 15 8, with a blank (3) before each
    stretch of plain text where the tokenizer puts one there. The answer Ada (11) follows the line break without a
    blank, and ends as a turn does: in <|end|> (16), not in </s> (2)."""
    template = PromptTemplate.of(tokenizer_of(kind, CHAT))
    own = (3,) if kind.endswith(("always", "old")) else ()
    assert template.style == "chat"
    assert template.prompt_ids("Who?") == (1, 14, *own, 8, 13, 7, 16, *own, 8, 15, *own, 8)
    assert template.answer_ids("Ada") == (11, END)
    assert template.end_id == END


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_what_the_chat_template_itself_renders(kind: str) -> None:
    """Prompt and answer are the beginning of the whole chat's tokens; all that follows them is the last line break."""
    tokenizer = tokenizer_of(kind, CHAT)
    template = PromptTemplate.of(tokenizer, PromptConfig(examples=(("Who?", "Ada"), ("Who Who?", "Ada Ada"))))
    turns = ["Who?", "Ada", "Who Who?", "Ada Ada", "Who? Who?", "Ada?"]
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    example = template.example("Who? Who?", "Ada?")
    ids = [*example.prompt_ids, *example.answer_ids]
    assert whole[: len(ids)] == ids
    assert whole.count(END) == ids.count(END) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_that_the_chat_template_puts_before_an_answer_is_the_answers(kind: str) -> None:
    """<s>ASK Who? REPLY Ada</s>: the prompt is asked for with "REPLY" (19), and " Ada" (10) follows it; the turn
    ends in </s> (2)."""
    asks = "{{ bos_token }}ASK {{ messages[0].content }} REPLY"
    chat = asks + "{% if not add_generation_prompt %} {{ messages[1].content }}{{ eos_token }}{% endif %}"
    template = PromptTemplate.of(tokenizer_of(kind, chat))
    ask = 18 if kind.endswith(("always", "old")) else 17
    assert template.prompt_ids("Who?") == (1, ask, 6, 7, 19)
    assert template.answer_ids("Ada") == (10, 2)


def test_what_the_chat_template_puts_before_every_answer_is_part_of_the_prompt() -> None:
    """A template that opens its answers with an empty thought: it is asked with that thought, as it is taught."""
    chat = CHAT.replace("{{ message.content }}", "{{ '??' if message.role == 'assistant' }}{{ message.content }}")
    template = PromptTemplate.of(tokenizer_of("byte-level BPE", chat))
    assert template.prompt_ids("Who?") == (1, 14, 8, 13, 7, END, 8, 15, 8, 7, 7)
    assert template.answer_ids("Ada") == (11, END)


def test_an_answer_that_would_join_the_prompt_is_tokenized_apart() -> None:
    """Two line breaks are one token (here): a prompt that ends in one keeps its own (2), and the answer the other."""
    vocabulary = {"</s>": 0, "?": 1, "Ċ": 2, "ĊĊ": 3, "a": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    template = PromptTemplate.of(made, PromptConfig(text="{question}\n{answer}"))
    assert made("?\n\na").input_ids == [1, 3, 4]
    assert template.example("?", "\na") == Example(prompt_ids=(1, 2), answer_ids=(2, 4, 0))


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt() -> None:
    """It gives <s> … </s> (1 … 2) for a text: neither prompt, context nor passage ends there, only the answer does."""
    template = PromptTemplate.of(tokenizer_of("BPE first", adds_eos=True))
    assert template.example("Who?", "Ada") == Example(prompt_ids=(1, 4, 5, 6, 7, 8, 9, 5), answer_ids=(10, 2))
    assert template.continuation("Who?", " Ada") == Example(prompt_ids=(1, 6, 7), answer_ids=(10,))
    assert template.passage("Who Who Who Who") == Example(prompt_ids=(1, 6, 6, 6), answer_ids=(6,))


def test_system_and_examples_are_shown_before_a_plain_question() -> None:
    config = PromptConfig(system="Who?", examples=(("Who Who?", "Ada"),), text="ASK {question} REPLY{answer}")
    template = PromptTemplate.of(tokenizer_of("byte-level BPE", CHAT), dataclasses.replace(config, style="plain"))
    example = template.example("Who?", "Ada")
    assert template.shown(example) == "<s>Who?\n\nASK Who Who? REPLYAda\n\nASK Who? REPLYAda</s>"
    assert example.answer_ids == (11, 2), "no blank stands before {answer}, and a plain answer ends in EOS"


def test_system_date_and_turn_end_of_a_chat() -> None:
    """Of two ways in which templates ask for today's date, both are told the one that is set."""
    dated = "{{ date_string }} {{ strftime_now('%Y-%m-%d') }}\n" + CHAT
    tokenizer = tokenizer_of("byte-level BPE", CHAT)
    asked = tokenizer.apply_chat_template
    tokenizer.chat_template = dated
    rendered: list[str] = []
    tokenizer.apply_chat_template = lambda *a, **settings: rendered.append(asked(*a, **settings)) or rendered[-1]
    config = PromptConfig(system="Who?", date="10 Apr 2025", turn_end="</s>")
    assert PromptTemplate.of(tokenizer, config).answer_ids("Ada")[-1] == 2
    PromptTemplate.of(tokenizer, config).prompt_ids("Ada?")
    assert "10 Apr 2025 2025-04-10\n<s><|system|>\nWho?<|end|>\n<|user|>\nAda?<|end|>\n<|assistant|>\n" in rendered
    rendered.clear()
    PromptTemplate.of(tokenizer).prompt_ids("Ada?")
    assert rendered[0].startswith("26 Jul 2024 2024-07-26\n"), "whatever the day is"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_too_long_loses_the_beginning_of_its_question(kind: str) -> None:
    """Around the question there are 6 tokens: <s> Question : line Answer : . Of 9 the question may have 3, so that of
    five times " Who" and ? (6 6 6 6 6 7) the last three are left."""
    template = PromptTemplate.of(tokenizer_of(kind), PromptConfig(max_tokens=9))
    question = 12 if kind.endswith(("BPE", "never")) else 4
    assert template.prompt_ids("Who Who Who Who Who?") == (1, question, 5, 6, 6, 7, 8, 9, 5)
    assert template.prompt_ids("Who?") == (1, question, 5, 6, 7, 8, 9, 5)


@pytest.mark.parametrize(
    ("settings", "chat_template", "message"),
    [
        ({"text": "Question: {question}"}, None, "model.prompt.text: must have {question} once, and end in {answer}"),
        ({"text": "{question}{question} {answer}"}, None, "model.prompt.text: must have"),
        ({"date": "2025-04-10"}, None, "model.prompt.date: must be like '10 Apr 2025' (got '2025-04-10')"),
        ({"style": "chat"}, None, "model.prompt.style: this model's tokenizer has no chat template; use plain"),
        ({"turn_end": "<|eot|>"}, None, "model.prompt.turn_end: '<|eot|>' is no token of this model; name one that is"),
        ({"max_tokens": 6}, None, "model.prompt.max_tokens: 6 leaves no room for a question; use more"),
        (
            {"system": "Who?"},
            "{{ raise_exception('no system') }}",
            "model.prompt: the model's chat template refuses it (no system); change it",
        ),
    ],
)
def test_a_prompt_that_cannot_be_made_is_one_line(settings: Any, chat_template: str | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        PromptTemplate.of(tokenizer_of("BPE first", chat_template), PromptConfig(**settings)).example("Who?", "Ada")
    assert str(error.value).startswith(message)


def test_answers_stop_at_the_turns_end_and_at_what_the_model_says_itself() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=99, hidden_size=8, num_attention_heads=1, num_hidden_layers=1, eos_token_id=5)
    )
    set_answer_ends(model, PromptTemplate.of(tokenizer_of("BPE first", CHAT)))
    assert eos_ids(model) == [2, 5, END]
    assert model.generation_config.pad_token_id == 2
