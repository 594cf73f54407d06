"""Whether a model can read a benchmark: asked before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.benchmarks.items import Benchmark, Item
from grun.errors import UserError

if TYPE_CHECKING:
    from grun.prompts.template import PromptTemplate

SPARE_TOKENS = 16
"""What a tokenizer may add to a text, BOS and EOS and the like."""


def check_lengths(benchmark: Benchmark, template: PromptTemplate, context: int | None, max_new_tokens: int = 1) -> None:
    """Raises UserError that names the first item which the model cannot read, or not answer at the length asked for.

    context: tokens that the model reads at most; None: it does not say. max_new_tokens: of an answer.
    """
    if context is None:
        return
    around = len(template.prompt_ids(""))
    sets = {"forget": benchmark.forget_set, "retain": benchmark.retain_set, **benchmark.evaluation}
    for name, items in sets.items():
        for index, item in enumerate(items):
            # A token stands for a byte at least: most items are short enough without being tokenized.
            if around + SPARE_TOKENS + _bytes(item) + max_new_tokens > context:
                _check(item, f"item {index} of {name}", template, context, max_new_tokens)


def _bytes(item: Item) -> int:
    """Of its examples, its longest question and its longest answer."""
    shown = sum(len(text.encode()) + SPARE_TOKENS for pair in item.examples for text in pair)
    questions, answers = ([len(text.encode()) for text in texts] for texts in (_questions(item), _answers(item)))
    return shown + max(questions) + max(answers)


def _questions(item: Item) -> list[str]:
    return [item.question, *([] if item.paraphrased_question is None else [item.paraphrased_question])]


def _answers(item: Item) -> list[str]:
    paraphrases = [] if item.paraphrased_answer is None else [item.paraphrased_answer]
    return [item.answer, *item.perturbed_answers, *paraphrases]


def _check(item: Item, place: str, template: PromptTemplate, context: int, max_new_tokens: int) -> None:
    examples = [item.example(template, answer) for answer in _answers(item)]
    longest = max(len(example) for example in examples)
    mend = "set model.prompt.max_tokens, or leave the item out"
    if longest > context:
        raise UserError("benchmark", f"{place} takes {longest} tokens, and the model reads {context}; {mend}")
    prompts = [example.prompt_ids for example in examples]
    if item.form == "question":
        shown = template.showing(item.examples)
        prompts += [shown.prompt_ids(question) for question in _questions(item)]
    prompt = max(len(ids) for ids in prompts)
    max_new_tokens = min(max_new_tokens, item.max_new_tokens or max_new_tokens)
    if item.is_asked and prompt + max_new_tokens - 1 > context:
        raise UserError(
            "evaluation.max_new_tokens",
            f"{max_new_tokens} do not fit behind the {prompt} of {place}, as the model reads {context} tokens; "
            f"use at most {context + 1 - prompt}, {mend}",
        )
