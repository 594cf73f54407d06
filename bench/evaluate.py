"""(model, benchmark) → raw rows, one an item, from which `bench.score` derives every score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge

from bench.benchmarks.items import Item
from bench.metrics.rouge import rouge_l_f1, rouge_l_recall
from bench.robustness import RobustnessConfig
from grun.adapters.grun import set_gate_threshold
from grun.data import Example, PromptTemplate, length_sorted_batches
from grun.edited import EditedModel
from grun.errors import UserError
from grun.forward import Adapted
from grun.likelihood import answer_likelihoods

ItemRow = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""
ITEM_COLUMNS = (
    "split",
    "item_index",
    "question",
    "answer",
    "generation",
    "rouge_l_recall",
    "rouge_l_f1",
    "answer_nll",
    "answer_tokens",
    "token_nll",
    "token_is_argmax",
    "token_mean_log_p",
    "token_std_log_p",
    "paraphrase_nll",
    "paraphrase_tokens",
    "wrong_nll",
    "wrong_tokens",
    "gate",
)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is evaluated; none of it changes what a score means."""

    batch_size: Annotated[int, Ge(1)] = 64
    """Sequences a forward pass."""
    max_new_tokens: Annotated[int, Ge(1)] = 200
    """Length at which a generation is cut."""
    max_items_per_split: Annotated[int, Ge(2)] | None = None
    """Evaluate only so many items of each split, evenly spread over it. None: all."""
    robustness: RobustnessConfig | None = None
    """Also attack the model, and measure what comes back of the forget set. None: no attacks."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One item, tokenized: its prompt, and the prompt with each answer to be scored."""

    index: int
    item: Item
    answers: list[tuple[str, Example]]
    """(`answer`, `paraphrase` or `wrong`, example); `answer` comes first."""

    @property
    def is_asked(self) -> bool:
        """Whether the model answers in its own words."""
        return self.item.form != "continuation"

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.answers[0][1].prompt_ids


def evaluate(
    adapted: Adapted,
    template: PromptTemplate,
    splits: Mapping[str, Sequence[Item]],
    config: EvaluationConfig,
    progress: Progress,
) -> list[ItemRow]:
    """Raw values of every item, as rows of the `items` table without their run_key.

    progress: called with (`evaluate <split>`, items done, items of the split).
    Raises UserError where a likelihood is not finite.
    """
    rows: list[ItemRow] = []
    for split, items in splits.items():
        questions = _prepare(adapted, template, split, items, config, progress)
        rows += _measure(adapted, template, split, questions, config, progress)
    return rows


def evaluate_thresholds(
    adapted: EditedModel,
    template: PromptTemplate,
    splits: Mapping[str, Sequence[Item]],
    config: EvaluationConfig,
    gate_thresholds: Sequence[float],
    base_rows: Sequence[ItemRow],
    progress: Progress,
) -> list[list[ItemRow]]:
    """What `evaluate` gives at each gate threshold, for little more than one evaluation.

    What a gated model answers depends only on which gates are open. A prompt whose gates are all shut is answered by
    the base model, whose rows are there already (base_rows, of the same splits); each other pattern of gates is
    evaluated once, at the first threshold that shows it.
    """
    base = {(row["split"], row["item_index"]): row for row in base_rows}
    curve: list[list[ItemRow]] = [[] for _ in gate_thresholds]
    for split, items in splits.items():
        questions = _prepare(adapted, template, split, items, config, progress)
        measured: dict[tuple[int, tuple[bool, ...]], ItemRow] = {}
        for rows, gate_threshold in zip(curve, gate_thresholds, strict=True):
            set_gate_threshold(adapted, gate_threshold)
            gates, patterns = _gates_of(adapted, questions, gate_threshold, config.batch_size)
            unseen = []
            for question, pattern in zip(questions, patterns, strict=True):
                if not any(pattern):
                    measured[question.index, pattern] = base[split, question.index]
                elif (question.index, pattern) not in measured:
                    unseen.append(question)
            of_index = {question.index: pattern for question, pattern in zip(questions, patterns, strict=True)}
            for row in _measure(adapted, template, split, unseen, config, progress):
                measured[row["item_index"], of_index[row["item_index"]]] = row
            for question, pattern, gate in zip(questions, patterns, gates, strict=True):
                row = measured[question.index, pattern]
                rows.append({name: row[name] for name in ITEM_COLUMNS} | {"gate": gate})
    return curve


def _prepare(
    adapted: Adapted,
    template: PromptTemplate,
    split: str,
    items: Sequence[Item],
    config: EvaluationConfig,
    progress: Progress,
) -> list[_Question]:
    """The split's questions, announced to the model."""
    questions = []
    for index in evenly_spread(len(items), config.max_items_per_split):
        item = items[index]
        texts = [("answer", item.answer), *(("wrong", text) for text in item.perturbed_answers)]
        if item.paraphrased_answer is not None:
            texts.append(("paraphrase", item.paraphrased_answer))
        answers = [(kind, item.example(template, text)) for kind, text in texts]
        questions.append(_Question(index=index, item=item, answers=answers))
    adapted.prepare(
        [example for question in questions for _, example in question.answers],
        generate=any(question.is_asked for question in questions),
        progress=partial(progress, f"prefix cache, {split}"),
    )
    return questions


def _measure(
    adapted: Adapted,
    template: PromptTemplate,
    split: str,
    questions: Sequence[_Question],
    config: EvaluationConfig,
    progress: Progress,
) -> list[ItemRow]:
    """Likelihoods and generations of some questions."""
    rows = {
        question.index: ItemRow(
            split=split,
            item_index=question.index,
            question=question.item.question,
            answer=_answer(question, template),
            generation=None,
            rouge_l_recall=None,
            rouge_l_f1=None,
            paraphrase_nll=None,
            paraphrase_tokens=None,
            wrong_nll=[],
            wrong_tokens=[],
            gate=None,
        )
        for question in questions
    }
    answers = [(question, kind, example) for question in questions for kind, example in question.answers]
    likelihoods = answer_likelihoods(
        adapted,
        [example for _, _, example in answers],
        with_tokens=[kind == "answer" for _, kind, _ in answers],
        batch_size=config.batch_size,
    )
    if not all(math.isfinite(likelihood.nll) for likelihood in likelihoods):
        raise UserError(
            "adapter.learning_rate", "training left a model whose likelihoods are not finite; use a smaller one"
        )
    for (question, kind, example), likelihood in zip(answers, likelihoods, strict=True):
        row, nll, num_tokens = rows[question.index], likelihood.nll, len(example.answer_ids)
        if kind == "wrong":
            row["wrong_nll"].append(nll)
            row["wrong_tokens"].append(num_tokens)
        else:
            row[f"{kind}_nll"], row[f"{kind}_tokens"] = nll, num_tokens
        if kind == "answer":
            row["gate"] = likelihood.gate
        if likelihood.tokens is not None:
            row["token_nll"] = likelihood.tokens.nll
            row["token_is_argmax"] = likelihood.tokens.is_argmax
            row["token_mean_log_p"] = likelihood.tokens.mean_log_p
            row["token_std_log_p"] = likelihood.tokens.std_log_p

    asked = [question for question in questions if question.is_asked]
    done = len(questions) - len(asked)
    for batch in length_sorted_batches([len(question.prompt_ids) for question in asked], config.batch_size):
        progress(f"evaluate {split}", done, len(questions))
        generated = adapted.generate([asked[at].prompt_ids for at in batch], config.max_new_tokens)
        for at, answer_ids in zip(batch, generated.answers, strict=True):
            row = rows[asked[at].index]
            row["generation"] = template.text(answer_ids)
            row["rouge_l_recall"] = rouge_l_recall(row["answer"], row["generation"])
            row["rouge_l_f1"] = rouge_l_f1(row["answer"], row["generation"])
        done += len(batch)
    progress(f"evaluate {split}", done, len(questions))
    return list(rows.values())


def _answer(question: _Question, template: PromptTemplate) -> str:
    """What its generation is compared with: of a passage, its end."""
    if question.item.form != "passage":
        return question.item.answer
    return template.text(question.answers[0][1].answer_ids)


def _gates_of(
    adapted: EditedModel, questions: Sequence[_Question], gate_threshold: float, batch_size: int
) -> tuple[list[list[float]], list[tuple[bool, ...]]]:
    """Each prompt's gates by layer, and which of them the model holds to be open."""
    gates: list[list[float]] = [[] for _ in questions]
    patterns: list[tuple[bool, ...]] = [() for _ in questions]
    for batch in length_sorted_batches([len(question.prompt_ids) for question in questions], batch_size):
        logits_BK = adapted.prompt_gates([questions[at].prompt_ids for at in batch])
        assert logits_BK is not None, "only gated models have thresholds"
        gate_BK = torch.sigmoid(logits_BK)
        for at, values, is_open in zip(batch, gate_BK.tolist(), (gate_BK >= gate_threshold).tolist(), strict=True):
            gates[at], patterns[at] = values, tuple(is_open)
    return gates, patterns


def evenly_spread(num_items: int, keep: int | None) -> list[int]:
    """Indices of `keep` of so many items, from all over; None: all of them."""
    if keep is None or keep >= num_items:
        return list(range(num_items))
    return [position * num_items // keep for position in range(keep)]
