"""(model, benchmark) → raw rows, one an item, from which `bench.evaluation.score` derives every score."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.benchmarks import SPLITS
from bench.benchmarks.items import Item
from bench.evaluation.asking import Asking
from bench.evaluation.gradients import gradient_norms
from bench.results.columns import ItemRow, item_row
from grun.data import Example, length_sorted_batches
from grun.errors import UserError
from grun.model.likelihood import AnswerLikelihood, answer_likelihoods
from grun.prompts.template import PromptTemplate

TOLD_APART = {name for split, what in SPLITS.items() if what.strangers for name in (split, what.strangers)}
"""Splits of membership inference."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item, tokenized: its prompt, and the prompt with each answer to be scored."""

    index: int
    item: Item
    answers: list[tuple[str, Example]]
    """(`answer`, `paraphrase` or `wrong`, example); `answer` comes first."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What it is asked."""
        return self.own.prompt_ids

    @property
    def own(self) -> Example:
        """Prompt and right answer."""
        return self.answers[0][1]

    def row(self, split: str, template: PromptTemplate) -> ItemRow:
        """Its row before anything is measured. A generation is compared with the answer; of a text, with its tokens."""
        is_cut = self.item.form in ("passage", "excerpt")
        return item_row(
            split=split,
            item_index=self.index,
            question=self.item.question,
            answer=template.text(self.own.answer_ids) if is_cut else self.item.answer,
            wrong_nll=[],
            wrong_tokens=[],
        )


def evaluate(asking: Asking, splits: Mapping[str, Sequence[Item]]) -> list[ItemRow]:
    """Raw values of every item, as rows of the `items` table without their run_key.

    Raises UserError where a likelihood is not finite.
    """
    rows: list[ItemRow] = []
    for split, items in splits.items():
        rows += in_order(asking, measure(asking, split, own_questions(asking, split, items)))
    return rows


def in_order(asking: Asking, own_rows: Sequence[ItemRow]) -> list[ItemRow]:
    """All workers' rows of a split, as its items stand."""
    return sorted(asking.workers.gather(list(own_rows)), key=lambda row: int(row["item_index"]))


def own_questions(asking: Asking, split: str, items: Sequence[Item]) -> list[Question]:
    """This worker's share of the split's questions; all of them are announced to the model."""
    questions = []
    for index in evenly_spread(len(items), asking.config.max_items_per_split):
        item = items[index]
        texts = [("answer", item.answer), *(("wrong", text) for text in item.perturbed_answers)]
        if item.paraphrased_answer is not None:
            texts.append(("paraphrase", item.paraphrased_answer))
        answers = [(kind, item.example(asking.template, text)) for kind, text in texts]
        questions.append(Question(index=index, item=item, answers=answers))
    asking.adapted.announce(
        [example for question in questions for _, example in question.answers],
        generate=any(question.item.is_asked for question in questions),
        progress=partial(asking.progress, f"prefix cache, {split}"),
    )
    return list(asking.workers.share_of(questions))


def measure(asking: Asking, split: str, questions: Sequence[Question]) -> list[ItemRow]:
    """Likelihoods and generations of some questions, a row each, in their order."""
    rows = {question.index: question.row(split, asking.template) for question in questions}
    answers = [(question, kind, example) for question in questions for kind, example in question.answers]
    likelihoods = answer_likelihoods(
        asking.adapted,
        [example for _, _, example in answers],
        with_tokens=[kind == "answer" for _, kind, _ in answers],
        batch_size=asking.config.batch_size,
    )
    if not all(math.isfinite(likelihood.nll) for likelihood in likelihoods):
        raise UserError(
            "adapter.learning_rate", "training left a model whose likelihoods are not finite; use a smaller one"
        )
    for (question, kind, example), likelihood in zip(answers, likelihoods, strict=True):
        _note(rows[question.index], kind, likelihood, len(example.answer_ids))
    if asking.config.gradient_norms and split in TOLD_APART:
        end = -1 if SPLITS[split].kind == "question" else None  # as `own_tokens`
        own = [replace(question.own, answer_ids=question.own.answer_ids[:end]) for question in questions]
        for row, norm in zip(rows.values(), gradient_norms(asking.adapted, own), strict=True):
            row["gradient_norm"] = norm
    _generate(asking, split, questions, rows)
    return list(rows.values())


def _note(row: ItemRow, kind: str, likelihood: AnswerLikelihood, num_tokens: int) -> None:
    """Write down what one of an item's answers is worth."""
    if kind == "wrong":
        row["wrong_nll"].append(likelihood.nll)
        row["wrong_tokens"].append(num_tokens)
    else:
        row[f"{kind}_nll"], row[f"{kind}_tokens"] = likelihood.nll, num_tokens
    if kind == "answer":
        row["gate"] = likelihood.gate
    if likelihood.tokens is not None:
        row |= {f"token_{name}": values for name, values in vars(likelihood.tokens).items()}


def _generate(asking: Asking, split: str, questions: Sequence[Question], rows: Mapping[int, ItemRow]) -> None:
    """Fill in what the model answers in its own words.

    Greedy decoding gives an item's own answer exactly where each of its tokens, EOS last unless it is cut before, is
    the model's first choice: the likelihoods say so already, and only the other questions are decoded.
    """
    template = asking.template
    asked = []
    for question in questions:
        own, limit = question.own.answer_ids, _limit(asking, question)
        answer = own[:-1] if own[-1] == template.end_id else own
        ends = len(answer) < len(own) or len(own) >= limit
        knows = ends and all(rows[question.index]["token_is_argmax"])
        if question.item.is_asked and knows and not asking.decode_all:
            rows[question.index]["generation"] = question.item.generation(template, answer[:limit])
        elif question.item.is_asked:
            asked.append(question)
    done = len(questions) - len(asked)
    for batch in length_sorted_batches([len(question.prompt_ids) for question in asked], asking.config.batch_size):
        asking.progress(f"evaluate {split}", done, len(questions))
        limit = max(_limit(asking, asked[at]) for at in batch)
        drafts = [] if asking.decode_all else [_draft(asking, split, asked[at], rows)[:limit] for at in batch]
        generated = asking.adapted.generate([asked[at].prompt_ids for at in batch], limit, drafts)
        for at, answer_ids in zip(batch, generated.answers, strict=True):
            rows[asked[at].index]["generation"] = asked[at].item.generation(template, answer_ids)
        done += len(batch)
    asking.progress(f"evaluate {split}", done, len(questions))


def _draft(asking: Asking, split: str, question: Question, rows: Mapping[int, ItemRow]) -> tuple[int, ...]:
    """How the model's answer may well go: as the target model's, unless the likelihoods speak against it.

    They say how far greedy decoding follows the right answer, and that it leaves it then: nothing else can begin so.
    """
    own, argmax = question.own.answer_ids, rows[question.index]["token_is_argmax"]
    right = own[: argmax.index(False) if False in argmax else len(own)]
    text = asking.drafts.get((split, question.index))
    is_free = text is not None and question.item.form == "question"
    draft = question.item.example(asking.template, text).answer_ids if is_free else ()
    leaves = draft[: len(right)] == right and draft[: len(right) + 1] != own[: len(right) + 1]
    return draft if leaves else right


def _limit(asking: Asking, question: Question) -> int:
    """The most tokens of a generation."""
    return min(asking.config.max_new_tokens, question.item.max_new_tokens or asking.config.max_new_tokens)


def evenly_spread(num_items: int, keep: int | None) -> list[int]:
    """Indices of `keep` of so many items, from all over; None: all of them."""
    if keep is None or keep >= num_items:
        return list(range(num_items))
    return [position * num_items // keep for position in range(keep)]
