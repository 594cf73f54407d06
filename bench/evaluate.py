"""(model, benchmark) → raw rows, one an item → scores. Every score is derived from the rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge

from bench.benchmarks.items import Item
from bench.metrics.forget_quality import forget_quality
from bench.metrics.gates import gate_auc, gate_mean, gate_open_share
from bench.metrics.model_utility import model_utility
from bench.metrics.probability import Floats, multiple_choice_probability, probability
from bench.metrics.rouge import rouge_l_recall
from bench.metrics.truth_ratio import forget_truth_ratio, log_truth_ratio, retain_truth_ratio
from grun.adapters.grun import set_gate_threshold
from grun.data import Example, PromptTemplate, length_sorted_batches
from grun.edited import EditedModel
from grun.errors import UserError
from grun.forward import Adapted
from grun.unlearn import answer_nll

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
    "answer_nll",
    "answer_tokens",
    "paraphrase_nll",
    "paraphrase_tokens",
    "wrong_nll",
    "wrong_tokens",
    "gate",
)
MULTIPLE_CHOICE_SPLITS = ("real_authors", "world_facts")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is evaluated; none of it changes what a score means."""

    batch_size: Annotated[int, Ge(1)] = 64
    """Sequences a forward pass."""
    max_new_tokens: Annotated[int, Ge(1)] = 200
    """Length at which a generation is cut."""
    max_items_per_split: Annotated[int, Ge(2)] | None = None
    """Evaluate only so many items of each split, evenly spread over it. None: all."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One item, tokenized: its prompt, and the prompt with each answer to be scored."""

    index: int
    item: Item
    answers: list[tuple[str, Example]]
    """(`answer`, `paraphrase` or `wrong`, example); `answer` comes first."""

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
    for index in _evenly_spread(len(items), config.max_items_per_split):
        item = items[index]
        texts = [("answer", item.answer), *(("wrong", text) for text in item.perturbed_answers)]
        if item.paraphrased_answer is not None:
            texts.append(("paraphrase", item.paraphrased_answer))
        prompt_ids = template.prompt_ids(item.question)
        answers = [(kind, Example(prompt_ids=prompt_ids, answer_ids=template.answer_ids(text))) for kind, text in texts]
        questions.append(_Question(index=index, item=item, answers=answers))
    adapted.prepare(
        [example for question in questions for _, example in question.answers],
        generate=True,
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
            answer=question.item.answer,
            paraphrase_nll=None,
            paraphrase_tokens=None,
            wrong_nll=[],
            wrong_tokens=[],
            gate=None,
        )
        for question in questions
    }
    answers = [(question, kind, example) for question in questions for kind, example in question.answers]
    all_nll, gates = answer_nll(adapted, [example for _, _, example in answers], batch_size=config.batch_size)
    if not np.isfinite(all_nll).all():
        raise UserError(
            "adapter.learning_rate", "training left a model whose likelihoods are not finite; use a smaller one"
        )
    for position, ((question, kind, example), nll) in enumerate(zip(answers, all_nll, strict=True)):
        row, num_tokens = rows[question.index], len(example.answer_ids)
        if kind == "wrong":
            row["wrong_nll"].append(nll)
            row["wrong_tokens"].append(num_tokens)
        else:
            row[f"{kind}_nll"], row[f"{kind}_tokens"] = nll, num_tokens
        if kind == "answer" and gates is not None:
            row["gate"] = gates[position]

    done = 0
    for batch in length_sorted_batches([len(question.prompt_ids) for question in questions], config.batch_size):
        progress(f"evaluate {split}", done, len(questions))
        generated = adapted.generate([questions[at].prompt_ids for at in batch], config.max_new_tokens)
        for at, answer_ids in zip(batch, generated.answers, strict=True):
            row = rows[questions[at].index]
            row["generation"] = template.text(answer_ids)
            row["rouge_l_recall"] = rouge_l_recall(row["answer"], row["generation"])
        done += len(batch)
    progress(f"evaluate {split}", done, len(questions))
    return list(rows.values())


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


def score(
    rows: Sequence[ItemRow], retain_model_rows: Sequence[ItemRow] | None, gate_threshold: float
) -> dict[str, float]:
    """Every metric that the rows allow, by column name.

    retain_model_rows: the retain model's rows of the same benchmark; without them there is no forget_quality.
    """
    by_split: dict[str, list[ItemRow]] = {}
    for row in rows:
        by_split.setdefault(row["split"], []).append(row)
    scores: dict[str, float] = {}
    for split, members in by_split.items():
        right = _probability(members, "answer")
        if split in MULTIPLE_CHOICE_SPLITS:
            wrong = [probability(np.array(m["wrong_nll"]), np.array(m["wrong_tokens"])) for m in members]
            right = multiple_choice_probability(right, wrong)
        log_ratio = _log_truth_ratio(members)
        truth_ratio = forget_truth_ratio if split == "forget" else retain_truth_ratio
        scores[f"{split}_probability"] = float(right.mean())
        scores[f"{split}_rouge_l_recall"] = float(np.mean([m["rouge_l_recall"] for m in members]))
        scores[f"{split}_truth_ratio"] = truth_ratio(log_ratio)
        if members[0]["gate"] is not None:
            gates = _gates(members)
            scores[f"{split}_gate_mean"] = gate_mean(gates)
            scores[f"{split}_gate_open_share"] = gate_open_share(gates, gate_threshold)
    scores |= model_utility(scores)
    if by_split["forget"][0]["gate"] is not None:
        scores["gate_auc"] = gate_auc(_gates(by_split["forget"]), _gates(by_split["retain"]))
    if retain_model_rows is not None:
        gold = [row for row in retain_model_rows if row["split"] == "forget"]
        scores["forget_quality"], scores["log10_forget_quality"] = forget_quality(
            _log_truth_ratio(by_split["forget"]), _log_truth_ratio(gold)
        )
    return scores


def _probability(rows: Sequence[ItemRow], kind: str) -> Floats:
    return probability(_column(rows, f"{kind}_nll"), _column(rows, f"{kind}_tokens"))


def _log_truth_ratio(rows: Sequence[ItemRow]) -> Floats:
    right = "answer" if rows[0]["paraphrase_nll"] is None else "paraphrase"
    return log_truth_ratio(
        _column(rows, f"{right}_nll"),
        _column(rows, f"{right}_tokens"),
        [np.array(row["wrong_nll"]) for row in rows],
        [np.array(row["wrong_tokens"]) for row in rows],
    )


def _gates(rows: Sequence[ItemRow]) -> Floats:
    return np.array([row["gate"] for row in rows], dtype=np.float64)


def _column(rows: Sequence[ItemRow], name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _evenly_spread(num_items: int, keep: int | None) -> list[int]:
    if keep is None or keep >= num_items:
        return list(range(num_items))
    return [position * num_items // keep for position in range(keep)]
