"""TOFU evaluation logs of open-unlearning (arXiv 2506.12618) as rows of items.

`TOFU_EVAL.json` is {metric: {"agg_value": its mean, "value_by_index": {place of the item, from "0": entry}}}. Read are

    <set>_Q_A_Prob       {"prob": …, "avg_loss": …}      mean nll of a token of the answer, nats, the turn's end counted
    <set>_Q_A_PARA_Prob  the same                        of the answer in other words (forget and retain alone)
    <set>_Q_A_PERT_Prob  {"prob": […], "avg_loss": […]}  of the wrong answers
    <set>_Q_A_ROUGE      {"input": …, "ground_truth": …, "generation": …, "rougeL_recall": …}

of the sets forget, retain, ra and wf. So it is in github.com/locuslab/open-unlearning: the file in `src/evals/base.py`,
its entries in `src/evals/metrics/memorization.py` (commit 2db47ec) and `utils.py` (e305b27), their names in
`configs/eval/tofu_metrics/*.yaml` (36b30cd). The logs of its target and retain models, the hub's data set
open-unlearning/eval, are of the same make. Its aggregates, truth ratios and membership scores are not read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from bench.benchmarks.items import Benchmark, Item
from bench.evaluation.evaluate import evenly_spread
from bench.results.columns import ItemRow, item_row
from bench.validation import validated
from grun.errors import UserError

SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
"""Split of ours → how its metrics begin there."""
Log = Mapping[str, Any]
ANOTHER = "it is of another benchmark or forget split (--benchmark.forget-split)"


@dataclass(frozen=True, kw_only=True)
class _Likelihood:
    avg_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Likelihoods:
    avg_loss: Annotated[list[float] | None, BeforeValidator(lambda v: [v] if isinstance(v, int | float) else v)] = None


@dataclass(frozen=True, kw_only=True)
class _Answer:
    ground_truth: str | None = None
    generation: str | None = None


KINDS: Mapping[str, Any] = {"Prob": _Likelihood, "PARA_Prob": _Likelihood, "PERT_Prob": _Likelihoods, "ROUGE": _Answer}
"""How metrics end there → what is read of an entry."""


def read_log(file: Path) -> Log:
    """Raises UserError where it cannot be read, or is no such log."""
    try:
        log = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(
            "FILE", f"{file} cannot be read as JSON ({type(error).__name__}); give a TOFU_EVAL.json"
        ) from error
    known = [f"{name}_Q_A_{kind}" for name in SETS.values() for kind in KINDS]
    found = [log[metric] for metric in known if metric in log] if isinstance(log, dict) else []
    if not found:
        raise UserError("FILE", f"{file} is no log of open-unlearning's TOFU evaluation; give a TOFU_EVAL.json")
    if all(isinstance(value, int | float) for value in found):
        raise UserError("FILE", f"{file} is a summary, without the items' values; give the TOFU_EVAL.json beside it")
    return log


def method_of(file: Path) -> str:
    """The folder that a log lies in, but for those that open-unlearning makes in each: evals, checkpoint-60."""
    folders = reversed(file.absolute().parent.parts)
    return next(name for name in folders if not re.match(r"evals|checkpoint-\d", name))


def item_rows(file: Path, benchmark: Benchmark, max_items_per_split: int | None) -> list[ItemRow]:
    """Rows of the items that a run evaluates; what the log does not hold is null, the numbers of tokens among it.

    Raises UserError where it is no such log, or its items are not the benchmark's.
    """
    log, rows = read_log(file), []
    for split, items in benchmark.evaluation.items():
        found = {kind: _entries(file, log, f"{SETS.get(split, split)}_Q_A_{kind}") for kind in KINDS}
        if any(place >= len(items) for entries in found.values() for place in entries):
            raise UserError("FILE", f"{file} has more than the {len(items)} items of {split}; {ANOTHER}")
        for place, item in evenly_spread(items, max_items_per_split):
            entry = {kind: found[kind].get(place, nothing()) for kind, nothing in KINDS.items()}
            rows.append(_row(file, split, place, item, entry))
    return rows


def _entries(file: Path, log: Log, metric: str) -> Mapping[int, Any]:
    """What a metric has of each item, by its place."""
    kind = KINDS[metric.partition("_Q_A_")[2]]

    def read() -> Iterator[tuple[int, Any]]:
        for place, entry in log[metric]["value_by_index"].items() if metric in log else ():
            known = {field.name: entry[field.name] for field in fields(kind) if field.name in entry}
            yield int(place), validated(kind, known, f"{place}.{{}}".format)

    try:
        return dict(read())
    except (UserError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError("FILE", f"{file} is not laid out as its like: {metric}, {error}") from error


def _row(file: Path, split: str, place: int, item: Item, entry: Mapping[str, Any]) -> ItemRow:
    """Of one item. entry: what the log has of it."""
    asked = entry["ROUGE"].ground_truth
    if asked is not None and not _ends_in(asked, item.answer):
        problem = f"answers item {place} of {split} with {asked[-60:]!r}, and here that is {item.answer[-60:]!r}"
        raise UserError("FILE", f"{file} {problem}; {ANOTHER}")
    # Without the right answer in the words that a truth ratio takes, there is nothing to set the wrong ones against.
    right = entry["Prob" if item.paraphrased_answer is None else "PARA_Prob"].avg_loss
    return item_row(
        split=split,
        item_index=place,
        question=item.question,
        answer=item.answer,
        generation=entry["ROUGE"].generation,
        answer_nll=entry["Prob"].avg_loss,
        paraphrase_nll=entry["PARA_Prob"].avg_loss,
        wrong_nll=None if right is None else entry["PERT_Prob"].avg_loss,
    )


def _ends_in(text: str, answer: str) -> bool:
    """Word for word: the log's texts went through a tokenizer, and may have a prompt before the answer."""
    words, wanted = (re.findall(r"\w+", each) for each in (text, answer))
    return words[-len(wanted) :] == wanted
