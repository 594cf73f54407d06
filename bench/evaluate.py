"""(model, benchmark) → raw rows, one an item → scores. Every score is derived from the rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from bench.benchmarks.items import Item
from bench.metrics.forget_quality import forget_quality
from bench.metrics.gates import gate_auc, gate_mean, gate_open_share
from bench.metrics.model_utility import model_utility
from bench.metrics.probability import Floats, multiple_choice_probability, probability
from bench.metrics.rouge import rouge_l_recall
from bench.metrics.truth_ratio import forget_truth_ratio, log_truth_ratio, retain_truth_ratio
from grun.data import Example, PromptTemplate, length_sorted_batches
from grun.errors import UserError
from grun.forward import Adapted
from grun.unlearn import answer_nll

ItemRow = dict[str, Any]
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


def evaluate(
    adapted: Adapted,
    template: PromptTemplate,
    splits: Mapping[str, Sequence[Item]],
    config: EvaluationConfig,
    progress: Callable[[str, int, int], None],
) -> list[ItemRow]:
    """Raw values of every item, as rows of the `items` table without their run_key.

    progress: called with (`evaluate <split>`, items done, items of the split).
    Raises UserError where a likelihood is not finite.
    """
    rows: list[ItemRow] = []
    for split, items in splits.items():
        indices = _evenly_spread(len(items), config.max_items_per_split)
        rows += _evaluate_split(adapted, template, split, {i: items[i] for i in indices}, config, progress)
    return rows


def _evaluate_split(
    adapted: Adapted,
    template: PromptTemplate,
    split: str,
    items: Mapping[int, Item],
    config: EvaluationConfig,
    progress: Callable[[str, int, int], None],
) -> list[ItemRow]:
    prompts = {index: template.prompt_ids(item.question) for index, item in items.items()}
    answers: list[tuple[int, str, Example]] = []
    for index, item in items.items():
        texts = [("answer", item.answer), *(("wrong", text) for text in item.perturbed_answers)]
        if item.paraphrased_answer is not None:
            texts.append(("paraphrase", item.paraphrased_answer))
        for kind, text in texts:
            example = Example(prompt_ids=prompts[index], answer_ids=template.answer_ids(text))
            answers.append((index, kind, example))

    rows = {
        index: ItemRow(
            split=split,
            item_index=index,
            question=item.question,
            answer=item.answer,
            paraphrase_nll=None,
            paraphrase_tokens=None,
            wrong_nll=[],
            wrong_tokens=[],
            gate=None,
        )
        for index, item in items.items()
    }
    all_nll, gates = answer_nll(adapted, [example for _, _, example in answers], batch_size=config.batch_size)
    if not np.isfinite(all_nll).all():
        raise UserError(
            "adapter.learning_rate", "training left a model whose likelihoods are not finite; use a smaller one"
        )
    for position, ((index, kind, example), nll) in enumerate(zip(answers, all_nll, strict=True)):
        row, num_tokens = rows[index], len(example.answer_ids)
        if kind == "wrong":
            row["wrong_nll"].append(nll)
            row["wrong_tokens"].append(num_tokens)
        else:
            row[f"{kind}_nll"], row[f"{kind}_tokens"] = nll, num_tokens
        if kind == "answer" and gates is not None:
            row["gate"] = gates[position]

    indices, done = list(items), 0
    for batch in length_sorted_batches([len(prompts[index]) for index in indices], config.batch_size):
        progress(f"evaluate {split}", done, len(items))
        generated = adapted.generate([prompts[indices[at]] for at in batch], config.max_new_tokens)
        for at, answer_ids in zip(batch, generated.answers, strict=True):
            row = rows[indices[at]]
            row["generation"] = template.text(answer_ids)
            row["rouge_l_recall"] = rouge_l_recall(row["answer"], row["generation"])
        done += len(batch)
    progress(f"evaluate {split}", done, len(items))
    return list(rows.values())


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
