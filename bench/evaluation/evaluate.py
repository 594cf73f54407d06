"""(model, benchmark) → raw rows, one an item, from which `bench.evaluation.score` derives every score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge

from bench.benchmarks.items import Item
from bench.evaluation.robustness import RobustnessConfig
from bench.progress import Progress
from bench.results.columns import ItemRow, item_row
from grun.adapters.grun import gates_forced
from grun.data import Example, length_sorted_batches
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.model.forward import Adapted
from grun.model.likelihood import answer_likelihoods
from grun.prompts.template import PromptTemplate
from grun.sequential import combined_edits
from grun.workers import ALONE, Workers

Pattern = tuple[bool, ...]
"""Which gates are open, layer by layer."""
Applied = frozenset[tuple[int, str]]
"""(place of an edited layer, request) of each edit that is applied to a prompt."""


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
    *,
    workers: Workers = ALONE,
    decode_all: bool = False,
) -> list[ItemRow]:
    """Raw values of every item, as rows of the `items` table without their run_key.

    progress: called with (`evaluate <split>`, items done, items of the split).
    workers: they share out the items of each split; every one gets all rows.
    decode_all: also decode the answers that follow from the likelihoods, as a check of those that do.
    Raises UserError where a likelihood is not finite.
    """
    rows: list[ItemRow] = []
    for split, items in splits.items():
        questions = workers.share_of(_prepare(adapted, template, split, items, config, progress))
        found = workers.gather(_measure(adapted, template, split, questions, config, progress, decode_all))
        rows += sorted(found, key=_item_index)
    return rows


def evaluate_thresholds(
    adapted: EditedModel,
    template: PromptTemplate,
    splits: Mapping[str, Sequence[Item]],
    config: EvaluationConfig,
    gate_thresholds: Sequence[float],
    base_rows: Sequence[ItemRow],
    progress: Progress,
    *,
    workers: Workers = ALONE,
) -> list[list[ItemRow]]:
    """What `evaluate` gives at each gate threshold, for little more than one evaluation.

    What a gated model answers depends only on which gates are open. A prompt whose gates are all shut is answered by
    the base model, whose rows are there already (base_rows, of the same splits); each other pattern of gates is
    evaluated once, for all prompts and thresholds that show it.
    """
    base = {(row["split"], row["item_index"]): row for row in base_rows}
    curve: list[list[ItemRow]] = [[] for _ in gate_thresholds]
    for split, items in splits.items():
        questions = workers.share_of(_prepare(adapted, template, split, items, config, progress))
        gates = _gates(adapted, questions, gate_thresholds, config.batch_size)
        showing: dict[Pattern, set[int]] = {}
        for question, at_thresholds in zip(questions, gates, strict=True):
            for pattern, _ in at_thresholds:
                showing.setdefault(pattern, set()).add(question.index)
        measured: dict[tuple[int, Pattern], ItemRow] = {}
        for pattern, indices in showing.items():
            if any(pattern):
                asked = [question for question in questions if question.index in indices]
                with gates_forced(adapted, pattern):
                    found = _measure(adapted, template, split, asked, config, progress)
            else:
                found = [base[split, index] for index in indices]
            measured |= {(row["item_index"], pattern): row for row in found}
        for place, rows in enumerate(curve):
            own: list[ItemRow] = []
            for question, at_thresholds in zip(questions, gates, strict=True):
                pattern, values = at_thresholds[place]
                row = measured[question.index, pattern]
                own.append(row | {"gate": values})
            rows += sorted(workers.gather(own), key=_item_index)
    return curve


def evaluate_combined(
    adapted: EditedModel,
    template: PromptTemplate,
    splits: Mapping[str, Sequence[Item]],
    config: EvaluationConfig,
    known: dict[tuple[str, int, Applied], ItemRow],
    progress: Progress,
) -> list[ItemRow]:
    """What `evaluate` gives for a model with the modules of several requests on (`grun.sequential.combine`).

    What it answers depends only on whose edits are applied at which layer. known: (split, item_index, that) → row, of
    the same modules under the same combination; used where it has a prompt already, and added to. A row under the empty
    set is the base model's.
    """
    rows: list[ItemRow] = []
    for split, items in splits.items():
        questions = _prepare(adapted, template, split, items, config, progress)
        found = _applied(adapted, questions, config.batch_size)
        new = [q for q in questions if (split, q.index, found[q.index][0]) not in known]
        for row in _measure(adapted, template, split, new, config, progress):
            known[split, row["item_index"], found[row["item_index"]][0]] = row
        for question in questions:
            applied, gates = found[question.index]
            row = known[split, question.index, applied]
            rows.append(row | {"gate": gates})
    return rows


def _applied(
    adapted: EditedModel, questions: Sequence[_Question], batch_size: int
) -> dict[int, tuple[Applied, list[float]]]:
    """Of each question, by index: whose edits are applied, and all gates, layer by layer."""
    edits, found = combined_edits(adapted), {}
    for batch in length_sorted_batches([len(question.prompt_ids) for question in questions], batch_size):
        logits = adapted.prompt_gates([questions[at].prompt_ids for at in batch])
        assert logits is not None, "requests' modules have gates"
        gates_BK = torch.sigmoid(logits)
        by_layer = gates_BK.split([len(edit.requests) for edit in edits], dim=1)
        is_applied = [(edit.weight(gates) > 0).tolist() for edit, gates in zip(edits, by_layer, strict=True)]
        for row, at in enumerate(batch):
            applied = frozenset(
                (layer, request)
                for layer, edit in enumerate(edits)
                for request, is_on in zip(edit.requests, is_applied[layer][row], strict=True)
                if is_on
            )
            found[questions[at].index] = (applied, gates_BK[row].tolist())
    return found


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
    decode_all: bool = False,
) -> list[ItemRow]:
    """Likelihoods and generations of some questions.

    Greedy decoding gives an item's own answer exactly where each of its tokens, EOS last, is the model's first choice:
    the likelihoods say so already, and only the other questions are decoded.
    """
    rows = {
        question.index: item_row(
            split=split,
            item_index=question.index,
            question=question.item.question,
            answer=_answer(question, template),
            wrong_nll=[],
            wrong_tokens=[],
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

    asked = []
    for question in questions:
        own = question.answers[0][1].answer_ids
        knows = all(rows[question.index]["token_is_argmax"]) and own[-1] == template.end_id
        if question.is_asked and knows and not decode_all:
            rows[question.index]["generation"] = template.text(own[:-1][: config.max_new_tokens])
        elif question.is_asked:
            asked.append(question)
    done = len(questions) - len(asked)
    for batch in length_sorted_batches([len(question.prompt_ids) for question in asked], config.batch_size):
        progress(f"evaluate {split}", done, len(questions))
        generated = adapted.generate([asked[at].prompt_ids for at in batch], config.max_new_tokens)
        for at, answer_ids in zip(batch, generated.answers, strict=True):
            rows[asked[at].index]["generation"] = template.text(answer_ids)
        done += len(batch)
    progress(f"evaluate {split}", done, len(questions))
    return list(rows.values())


def _answer(question: _Question, template: PromptTemplate) -> str:
    """What its generation is compared with: of a passage, its end."""
    if question.item.form != "passage":
        return question.item.answer
    return template.text(question.answers[0][1].answer_ids)


def _gates(
    adapted: EditedModel, questions: Sequence[_Question], gate_thresholds: Sequence[float], batch_size: int
) -> list[list[tuple[Pattern, list[float]]]]:
    """For each question at each threshold: which gates are open, and how open they are, layer by layer.

    A gate only depends on which gates below it are open, so one pass with a whole pattern forced gives the gates of
    every start of it: as many passes as there are starts to be seen, not as there are thresholds.
    """
    num_gates = len(adapted.layers)
    thresholds = np.asarray(gate_thresholds, dtype=np.float32).tolist()  # as the gates themselves compare
    known: list[dict[Pattern, float]] = [{} for _ in questions]
    """For each question: the open and shut gates below → the next gate."""

    def pattern_of(gates: Mapping[Pattern, float], gate_threshold: float) -> Pattern:
        """As far up as it is known."""
        pattern: Pattern = ()
        while len(pattern) < num_gates and pattern in gates:
            pattern += (gates[pattern] >= gate_threshold,)
        return pattern

    while True:
        unknown: dict[Pattern, set[int]] = {}
        for at, gates in enumerate(known):
            for pattern in {pattern_of(gates, gate_threshold) for gate_threshold in thresholds}:
                if len(pattern) < num_gates:
                    unknown.setdefault(pattern, set()).add(at)
        if not unknown:
            break
        for start, places in unknown.items():
            forced = start + (True,) * (num_gates - len(start))
            ordered = sorted(places)
            with gates_forced(adapted, forced):
                for batch in length_sorted_batches([len(questions[at].prompt_ids) for at in ordered], batch_size):
                    logits_BK = adapted.prompt_gates([questions[ordered[row]].prompt_ids for row in batch])
                    assert logits_BK is not None, "only gated models have thresholds"
                    for row, values in zip(batch, torch.sigmoid(logits_BK).tolist(), strict=True):
                        known[ordered[row]] |= {forced[:k]: values[k] for k in range(len(start), num_gates)}
    return [
        [
            (pattern, [gates[pattern[:k]] for k in range(num_gates)])
            for pattern in (pattern_of(gates, gate_threshold) for gate_threshold in thresholds)
        ]
        for gates in known
    ]


def _item_index(row: ItemRow) -> int:
    return int(row["item_index"])


def evenly_spread(num_items: int, keep: int | None) -> list[int]:
    """Indices of `keep` of so many items, from all over; None: all of them."""
    if keep is None or keep >= num_items:
        return list(range(num_items))
    return [position * num_items // keep for position in range(keep)]
