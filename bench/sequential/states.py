"""The request loop: deletion requests one after another, and after each of them every request measured again.

GRUN trains a module a request against the frozen base model, so their order does not matter to training, and what was
measured of one state serves the next. Every other adapter is a chain: request k goes on from the weights of k − 1.

Shapes: B prompts, L edited layers, K requests so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import evaluate
from bench.evaluation.reuse import Applied, evaluate_combined
from bench.results import store
from bench.results.columns import REQUESTS_SCHEMA, ItemRow
from bench.results.requests import read_requests, write_requests
from bench.results.storage import Location
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import config_columns
from bench.runs.run import run_prerequisites
from bench.runs.subject import Subject
from bench.runs.training import TRAINING, plan_of
from bench.sequential.request import Request, RequestSequence, Variant, is_chain, requests_of
from bench.sequential.scores import (
    PREFILL_PROMPTS,
    SOFT_GATE_IS_SHUT,
    open_shares,
    prefill_seconds,
    request_scores,
    rows_of,
    whole_scores,
)
from grun.adapters.grun import GrunConfig
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted
from grun.sequential import combine
from grun.targets.target import ForgetSet
from grun.training.checkpoints import Trained
from grun.training.recipe import Recipe
from grun.training.unlearn import unlearn
from grun.unlearned import save

Say = Callable[[str], None]


def run_sequence(sequence: RequestSequence, execution: Execution, say: Say) -> None:
    """Meet every request, and write the rows of every state; goes on after the last state that is there.

    say: gets one line for each state. Raises UserError where a training diverges.
    """
    study = _Study(sequence, execution, say)
    run_prerequisites(sequence.config, execution)
    if is_chain(sequence.config):
        study.run_chain()
    else:
        study.train_modules(range(sequence.only_after or len(study.requests)))
        study.run_modules()


def train_modules(sequence: RequestSequence, execution: Execution, say: Say, *, places: Sequence[int]) -> None:
    """Train the modules of some requests, each against the frozen base model; those that are there are kept.

    The requests share one prefix cache. places: of the requests in their order.
    """
    started = time.perf_counter()
    _Study(sequence, execution, say).train_modules(places)
    say(f"{sequence.study}: modules of {len(places)} requests are there, {time.perf_counter() - started:.0f} s")


class _Study:
    """One sequence under way."""

    def __init__(self, sequence: RequestSequence, execution: Execution, say: Say) -> None:
        self.sequence, self.execution, self.say = sequence, execution, say
        self.config = sequence.config
        self.subject = Subject(config=self.config, execution=execution)
        self.benchmark = self.subject.benchmark
        self.requests = requests_of(self.benchmark, sequence.num_requests, sequence.extra_requests)

    @cached_property
    def base(self) -> EditedModel:
        """GRUN: the target model and its prefix caches, for the edits of any request to be put on."""
        base = self.subject.attached()
        assert isinstance(base, EditedModel)
        return base

    @cached_property
    def gold_items(self) -> list[ItemRow] | None:
        """What the retain model says; None where there is none."""
        return self._reference_items("retain_model")

    @property
    def _adapter(self) -> GrunConfig:
        assert self.config.adapter.is_stackable
        return self.config.adapter

    def train_modules(self, places: Sequence[int]) -> None:
        """Those that are not there yet."""
        folders = {place: self._module(self.requests[place]) for place in places}
        missing = [place for place in places if not (folders[place] / TRAINING).exists()]
        if not missing:
            return
        model, template = self.subject.model, self.subject.template
        everything = [item.example(template) for request in self.requests for item in request.items]
        for request in self.requests:  # each a forget set of its own
            forget = ForgetSet(items=request.items, template=template, model=model)
            for items in forget.examples(self.config.forget_loss.targets).values():
                everything += [example for own in items for example in own]
        self.base.prepare(everything, generate=False, progress=lambda done, total: None)
        for place in missing:
            request = self.requests[place]
            own = replace(self.config, seed=self.config.seed + request.seed_offset)
            plan, reference = plan_of(own, self.subject, replace(self.benchmark, forget_set=request.items))
            fresh = self._adapter.attach(model, own.seed)
            adapted = self.base.with_edits({int(layer): edit for layer, edit in fresh.edits.items()})
            self._save(folders[place], adapted, unlearn(adapted, plan, Recipe.of(own), reference))

    def run_modules(self) -> None:
        """States of stacked modules, all of them trained."""
        todo = [(variant, size) for variant in self.sequence.variants for size in self._sizes(variant)]
        if not todo:
            return
        template = self.subject.template
        modules: dict[str, EditedModel] = {}
        seconds: dict[str, float] = {}
        for request in self.requests[: max(size for _, size in todo)]:
            module = self.subject.loaded(self._module(request))
            assert isinstance(module, EditedModel)
            modules[request.name] = module
            seconds[request.name] = self._train_seconds(self._module(request))
        base_items = self._reference_items("target_model") or ()
        base_rows = {(row["split"], row["item_index"], Applied()): row for row in base_items}
        known = {variant.combination: dict(base_rows) for variant in self.sequence.variants}
        for variant, size in todo:
            assert variant.combination is not None
            assert variant.gate_threshold is not None
            started = time.perf_counter()
            present = {request.name: modules[request.name] for request in self.requests[:size]}
            adapted = combine(self.base, present, variant.combination, variant.gate_threshold)
            rows = evaluate_combined(self._asking(adapted), self.benchmark.evaluation, known[variant.combination])
            cost = {
                "train_seconds": seconds[self.requests[size - 1].name],
                "eval_seconds": time.perf_counter() - started,
                "added_parameters": size * sum(p.numel() for p in self.base.trainable_parameters()),
            }
            if size == len(self.requests):
                prompts = [template.prompt_ids(item.question) for item in self.benchmark.evaluation["forget"]]
                edited, bare = prefill_seconds(adapted, prompts[:PREFILL_PROMPTS])
                cost |= {"prefill_seconds": edited, "bare_prefill_seconds": bare}
            self._write(variant, size, rows, cost, adapted)

    def run_chain(self) -> None:
        """States of one set of weights that every request changes."""
        (variant,) = self.sequence.variants
        adapter = self.config.adapter
        assert adapter.trains
        missing = self._sizes(variant)
        if not missing:
            return
        folders = [self._weights(size) for size in range(len(self.requests) + 1)]
        # Only the last weights are kept: of the last whole state, or of a later one that was not measured yet.
        begun = next((size for size in range(missing[0], 0, -1) if (folders[size] / TRAINING).exists()), 0)
        end = missing[-1]
        plans = [
            plan_of(self.config, self.subject, replace(self.benchmark, forget_set=request.items))
            for request in self.requests[begun:end]  # before an adapter is on: the reference model is the target model
        ]
        adapted = self.subject.loaded(folders[begun]) if begun else self.subject.attached()
        for size in range(max(begun, 1), end + 1):
            if size > begun:
                plan, reference = plans[size - begun - 1]
                self._save(folders[size], adapted, unlearn(adapted, plan, Recipe.of(self.config), reference))
                folders[size - 1].remove()
            if size not in missing:
                continue
            started = time.perf_counter()
            adapted.train(False)
            rows = evaluate(self._asking(adapted), self.benchmark.evaluation)
            cost = {
                "train_seconds": self._train_seconds(folders[size]),
                "eval_seconds": time.perf_counter() - started,
                "added_parameters": sum(p.numel() for p in adapted.trainable_parameters()),
            }
            self._write(variant, size, rows, cost, adapted)

    def _asking(self, adapted: Adapted) -> Asking:
        return Asking(adapted=adapted, template=self.subject.template, config=self.config.evaluation)

    def _module(self, request: Request) -> Location:
        return self.execution.folder / "modules" / self.sequence.module_key(request)

    def _weights(self, size: int) -> Location:
        return self.execution.folder / "modules" / self.sequence.chain_key(self.requests[:size])

    def _save(self, folder: Location, adapted: Adapted, done: Trained) -> None:
        with folder.written_folder(last=TRAINING) as scratch:
            save(adapted, self.config.adapter, self.subject.source, scratch)
            (scratch / TRAINING).write_text(json.dumps({"train_seconds": done.seconds}))

    def _train_seconds(self, folder: Location) -> float:
        return float(json.loads((folder / TRAINING).read())["train_seconds"])

    def _sizes(self, variant: Variant) -> list[int]:
        """How many requests have been met in each state whose rows are not there yet."""
        only = self.sequence.only_after
        sizes = [only] if only else range(1, len(self.requests) + 1)
        keys = {size: self.sequence.state_key(self.requests[:size], variant) for size in sizes}
        return [size for size, key in keys.items() if not read_requests(self.execution.folder, key)]

    def _reference_items(self, start_from: Literal["target_model", "retain_model"]) -> list[ItemRow] | None:
        return store.read_items(self.execution.folder, prerequisite(self.config, start_from).run_key)

    def _write(
        self, variant: Variant, size: int, rows: Sequence[ItemRow], cost: Mapping[str, Any], adapted: Adapted
    ) -> None:
        """The rows of one state; and of the last one every item."""
        key, met = self.sequence.state_key(self.requests[:size], variant), self.requests[:size]
        threshold = variant.gate_threshold or SOFT_GATE_IS_SHUT
        whole = whole_scores(rows, self.gold_items, met, threshold)
        columns = {name: v for name, v in config_columns(self.config).items() if name in REQUESTS_SCHEMA.names}
        common = {
            **columns,
            "run_key": key,
            "study": self.sequence.study,
            "combination": variant.combination,
            "gate_threshold": variant.gate_threshold,
            "request_index": size,
            "request": met[-1].name,
            **whole,
            **cost,
            "device": costs.device_name(adapted.device),
            "git_sha": costs.git_sha(),
            "created_at": datetime.now(UTC),
        }
        for split in ("retain", "similar"):
            of_split = [row for row in rows if row["split"] == split]
            common[f"{split}_open_shares"] = open_shares(of_split, size, threshold)
        gold, table = self.gold_items, []
        for place, request in enumerate(self.requests, start=1):
            own_rows = rows_of(rows, [request])
            own = {
                "evaluated_index": place,
                "evaluated_request": request.name,
                "is_requested": place <= size,
                **request_scores(own_rows, None if gold is None else rows_of(gold, [request])),
                "open_shares": open_shares(own_rows, size, threshold),
            }
            table.append(common | own)
        last = size == len(self.requests)
        write_requests(self.execution.folder, key, table, rows if last else ())
        utility = whole.get("model_utility", whole.get("partial_model_utility"))
        how = "" if variant.combination is None else f" {variant.combination} at {variant.gate_threshold:g}"
        self.say(
            f"{self.sequence.study}, {self.config.method}{how}: request {size} of {len(self.requests)}, "
            f"forget ROUGE-L so far {whole['requested_rouge_l_recall']:.3f}, utility {utility:.3f}, "
            f"{cost['train_seconds']:.0f} s + {cost['eval_seconds']:.0f} s"
        )
