"""(model, benchmark) → raw rows, one an item, from which `bench.evaluation.score` derives every score."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.benchmarks import SPLITS
from bench.benchmarks.items import Item
from bench.evaluation.asking import Asking
from bench.results.columns import ItemRow, item_row
from grun.attacks.gradients import gradient_norms
from grun.data import Example, length_sorted_batches
from grun.errors import UserError
from grun.lm.begun import Begun
from grun.model.forward import go_on
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question whose answer is to be decoded."""

    question: Question
    row: ItemRow
    """Gets it."""
    limit: int
    """In tokens."""
    draft: tuple[int, ...]
    """How it may well go, or go on; empty: nobody knows."""
    begun: Begun | None
    """How it begins, where that is kept."""


def evaluate(asking: Asking, splits: Mapping[str, Sequence[Item]]) -> list[ItemRow]:
    """Raw values of every item, as rows of the `items` table without their run_key.

    Raises UserError where a likelihood is not finite.
    """
    rows: dict[str, list[ItemRow]] = {}
    waiting: list[Asked] = []
    size = asking.config.batch_size
    for split, items in splits.items():
        rows[split], questions = [], own_questions(asking, split, items)
        for start in range(0, len(questions), size):
            scored, asked = _scored(asking, split, questions[start : start + size])
            rows[split] += scored
            waiting += asked
            begun = [each for each in waiting if each.begun is not None]
            if len(begun) >= size:  # more would take more memory, and hardly less time
                _answer(asking, begun)
                waiting = [each for each in waiting if each.begun is None]
        asking.progress(f"evaluate {split}", len(questions), len(questions))
    _answer(asking, waiting)
    return [row for own in rows.values() for row in in_order(asking, own)]


def in_order(asking: Asking, own_rows: Sequence[ItemRow]) -> list[ItemRow]:
    """All workers' rows of a split, as its items stand."""
    return sorted(asking.workers.gather(list(own_rows)), key=lambda row: int(row["item_index"]))


def own_questions(asking: Asking, split: str, items: Sequence[Item]) -> list[Question]:
    """This worker's share of the split's questions; all of them are announced to the model."""
    questions = []
    for index, item in evenly_spread(items, asking.config.max_items_per_split):
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
    rows, asked = _scored(asking, split, questions)
    asking.progress(f"evaluate {split}", len(questions), len(questions))
    _answer(asking, asked)
    return rows


def _scored(asking: Asking, split: str, questions: Sequence[Question]) -> tuple[list[ItemRow], list[Asked]]:
    """Likelihoods, and of them the generations that follow; those that do not are still to be asked for.

    Greedy decoding gives an item's own answer exactly where each of its tokens, EOS last unless it is cut before, is
    the model's first choice: the likelihoods say so already, and only the other questions are decoded.
    """
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
    begins: dict[int, Begun | None] = {}
    for (question, kind, example), likelihood in zip(answers, likelihoods, strict=True):
        if kind == "answer":
            begins[question.index] = likelihood.begun
        _note(rows[question.index], kind, likelihood, len(example.answer_ids))
    if asking.config.gradient_norms and split in TOLD_APART:
        end = -1 if SPLITS[split].kind == "question" else None  # as `own_tokens`
        own = [replace(question.own, answer_ids=question.own.answer_ids[:end]) for question in questions]
        for row, norm in zip(rows.values(), gradient_norms(asking.adapted, own), strict=True):
            row["gradient_norm"] = norm
    asked = []
    for question, row in zip(questions, rows.values(), strict=True):
        own_ids, limit = question.own.answer_ids, _limit(asking, question)
        answer = own_ids[:-1] if own_ids[-1] == asking.template.end_id else own_ids
        ends = len(answer) < len(own_ids) or len(own_ids) >= limit
        if question.item.is_asked and ends and all(row["token_is_argmax"]) and not asking.decode_all:
            row["generation"] = question.item.generation(asking.template, answer[:limit])
        elif question.item.is_asked:
            begun = None if asking.decode_all else begins[question.index]
            draft = () if asking.decode_all else _draft(asking, split, question, row)[:limit]
            rest = draft if begun is None else draft[len(begun.right) :]
            asked.append(Asked(question=question, row=row, limit=limit, draft=rest, begun=begun))
    return list(rows.values()), asked


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


def _answer(asking: Asking, asked: Sequence[Asked]) -> None:
    """Fill in what the model answers in its own words, of all splits at once: a decoding step costs little more of many
    questions than of few."""
    done = 0
    for limit, is_begun in sorted({(each.limit, each.begun is not None) for each in asked}):
        alike = [each for each in asked if (each.limit, each.begun is not None) == (limit, is_begun)]
        for batch in length_sorted_batches([len(each.question.prompt_ids) for each in alike], asking.config.batch_size):
            asking.progress("evaluate answers", done, len(asked))
            own = [alike[at] for at in batch]
            drafts, begun = [each.draft for each in own], [each.begun for each in own if each.begun is not None]
            if is_begun:
                answers = go_on(begun, limit, drafts)
            else:
                answers = asking.adapted.generate([each.question.prompt_ids for each in own], limit, drafts).answers
            for each, answer_ids in zip(own, answers, strict=True):
                each.row["generation"] = each.question.item.generation(asking.template, answer_ids)
            done += len(batch)
    if asked:
        asking.progress("evaluate answers", done, len(asked))


def _draft(asking: Asking, split: str, question: Question, row: ItemRow) -> tuple[int, ...]:
    """How the model's answer may well go: as the target model's, unless the likelihoods speak against it.

    They say how far greedy decoding follows the right answer, and that it leaves it then: nothing else can begin so.
    """
    own, argmax = question.own.answer_ids, row["token_is_argmax"]
    right = own[: argmax.index(False) if False in argmax else len(own)]
    text = asking.drafts.get((split, question.index))
    is_free = text is not None and question.item.form == "question"
    draft = question.item.example(asking.template, text).answer_ids if is_free else ()
    leaves = draft[: len(right)] == right and draft[: len(right) + 1] != own[: len(right) + 1]
    return draft if leaves else right


def _limit(asking: Asking, question: Question) -> int:
    """The most tokens of a generation."""
    return min(asking.config.max_new_tokens, question.item.max_new_tokens or asking.config.max_new_tokens)


def evenly_spread(items: Sequence[Item], keep: int | None) -> list[tuple[int, Item]]:
    """`keep` of the items, from all over, each with its place among all; None: all of them."""
    if keep is None or keep >= len(items):
        return list(enumerate(items))
    places = [position * len(items) // keep for position in range(keep)]
    return [(place, items[place]) for place in places]
