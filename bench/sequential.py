"""The request loop: deletion requests one after another, and after each of them every request measured again.

GRUN trains a module a request against the frozen base model, so their order does not matter to training, and what was
measured of one state serves the next. Every other adapter is a chain: request k goes on from the weights of k − 1.

Shapes: B prompts, D hidden size, K requests so far.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench import costs, results
from bench.benchmarks.items import Benchmark, Item
from bench.config import RunConfig
from bench.evaluate import Applied, ItemRow, evaluate, evaluate_combined
from bench.metrics.gates import gate_open_share
from bench.models import load_pretrained
from bench.prepare import prepared_model
from bench.score import score
from bench.storage import Location
from bench.train import TRAINING, Execution, cached, evaluate_references, plan_of, quiet, reference_config, unlearn_as
from grun.adapters.grun import GrunConfig
from grun.adapters.none import NoneConfig
from grun.data import PromptTemplate
from grun.edited import EditedModel
from grun.errors import UserError
from grun.forward import Adapted, CausalLM, left_padded
from grun.patching import decoder_layers, output_tensor, patched, with_output_tensor
from grun.plan import refusal_examples
from grun.sequential import Combination, combine
from grun.unlearned import save

ExtraRequest = Literal["repeat", "unknown"]
Say = Callable[[str], None]
PREFILL_PROMPTS = 32
PREFILL_REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class Request:
    """Items that somebody asks to be forgotten."""

    name: str
    split: str
    """Where they are evaluated."""
    indices: tuple[int, ...]
    """Their places in that split."""
    items: tuple[Item, ...]
    seed_offset: int = 0
    """Added to the config's seed, so that a repeated request trains a module of its own."""

    @cached_property
    def digest(self) -> str:
        """Names what is to be forgotten."""
        return _digest([[item.pair for item in self.items], self.seed_offset])


def requests_of(
    benchmark: Benchmark, num_requests: int | None, extra_requests: Sequence[ExtraRequest]
) -> list[Request]:
    """The benchmark's first requests, in order, then the hard cases.

    num_requests: None: all. extra_requests: `repeat`, the first one again; `unknown`, the holdout set, which the model
    never knew. Raises UserError where the benchmark has not so many, or no holdout set.
    """
    if not benchmark.requests:
        raise UserError("benchmark", f"{benchmark.name} has no requests; use authors, tofu or questions")
    count = len(benchmark.requests) if num_requests is None else num_requests
    if count > len(benchmark.requests):
        raise UserError(
            "num_requests", f"{count}, but {benchmark.name} {benchmark.forget_split} has {len(benchmark.requests)}"
        )
    requests = []
    place = {item.pair: index for index, item in enumerate(benchmark.evaluation["forget"])}
    for number, items in enumerate(benchmark.requests[:count], start=1):
        indices = tuple(place[item.pair] for item in items)
        requests.append(Request(name=f"{number:03d}", split="forget", indices=indices, items=tuple(items)))
    for extra in extra_requests:
        if extra == "repeat":
            requests.append(replace(requests[0], name="repeat", seed_offset=1))
            continue
        strangers = benchmark.evaluation.get("holdout")
        if strangers is None:
            raise UserError("extra_requests", f"{benchmark.name} has no holdout set here; leave `unknown` out")
        indices = tuple(range(len(strangers)))
        requests.append(Request(name="unknown", split="holdout", indices=indices, items=tuple(strangers)))
    return requests


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How the modules of several requests are used together; nothing is trained for it."""

    combination: Combination | None
    """None: the adapter is a chain."""
    gate_threshold: float | None


@dataclass(frozen=True, kw_only=True)
class RequestSequence:
    """One method, and the requests it is put to."""

    study: str
    config: RunConfig
    num_requests: int | None
    extra_requests: tuple[ExtraRequest, ...]
    variants: tuple[Variant, ...]
    """The first one is the method's own, the others show what else its modules could do. A chain has one."""

    def state_key(self, requests: Sequence[Request], variant: Variant) -> str:
        """Names the rows of the state after these requests. The same in a longer sequence."""
        config = self.config.to_dict()
        return _digest([self.config.train_key, config["evaluation"], _digests(requests), dataclasses.asdict(variant)])

    def module_key(self, request: Request) -> str:
        """Names the module that is trained for a request, whatever the others are."""
        return _digest([self.config.train_key, request.digest])

    def chain_key(self, requests: Sequence[Request]) -> str:
        """Names the weights after these requests."""
        return _digest([self.config.train_key, _digests(requests), "chain"])


def is_chain(config: RunConfig) -> bool:
    """Whether a request goes on from the one before it."""
    return not isinstance(config.adapter, GrunConfig)


def run_sequence(sequence: RequestSequence, execution: Execution, say: Say) -> None:
    """Meet every request, and write the rows of every state; goes on after the last state that is there.

    say: gets one line for each state. Raises UserError where a training diverges.
    """
    if execution.num_threads is not None:
        torch.set_num_threads(execution.num_threads)
    evaluate_references(sequence.config, execution)
    study = _Study(sequence, execution, say)
    if is_chain(sequence.config):
        study.run_chain()
    else:
        train_modules(sequence, execution, range(len(study.requests)))
        study.run_modules()


def train_modules(sequence: RequestSequence, execution: Execution, places: Sequence[int]) -> None:
    """Train the modules of some requests, each against the frozen base model; those that are there are kept.

    The requests share one prefix cache. places: of the requests in their order.
    """
    if execution.num_threads is not None:
        torch.set_num_threads(execution.num_threads)
    config = sequence.config
    assert isinstance(config.adapter, GrunConfig)
    benchmark = config.benchmark.load()
    requests = requests_of(benchmark, sequence.num_requests, sequence.extra_requests)
    folders = {place: _module(sequence, execution, requests[place]) for place in places}
    missing = [place for place in places if not (folders[place] / TRAINING).exists()]
    if not missing:
        return
    model, template, source = _load(config, benchmark, execution, trained_in_place=False)
    base = cached(config.adapter.attach(model, config.seed), execution)
    assert isinstance(base, EditedModel)
    everything = [item.example(template) for request in requests for item in request.items]
    if "refusal" in config.forget_loss.targets:
        for request in requests:  # a refusal goes by an item's place in its own request
            refusals = refusal_examples(template, [item.question for item in request.items])
            everything += [example for some in refusals for example in some]
    base.prepare(everything, generate=False, progress=lambda done, total: None)
    for place in missing:
        request = requests[place]
        own = replace(config, seed=config.seed + request.seed_offset)
        plan, reference = plan_of(own, replace(benchmark, forget_set=request.items), template, model, quiet)
        fresh = config.adapter.attach(model, own.seed)
        adapted = base.with_edits({int(layer): edit for layer, edit in fresh.edits.items()})
        done = unlearn_as(own, adapted, plan, reference, quiet)
        with folders[place].written_folder(last=TRAINING) as scratch:
            save(adapted, config.adapter, source, scratch)
            (scratch / TRAINING).write_text(json.dumps({"train_seconds": done.seconds}))


class _Study:
    """One sequence under way."""

    def __init__(self, sequence: RequestSequence, execution: Execution, say: Say) -> None:
        self.sequence, self.execution, self.say = sequence, execution, say
        self.config = sequence.config
        self.benchmark = self.config.benchmark.load()
        self.requests = requests_of(self.benchmark, sequence.num_requests, sequence.extra_requests)
        self.base_items = self._reference_items("target_model")
        self.gold_items = self._reference_items("retain_model")

    def run_modules(self) -> None:
        """States of stacked modules."""
        adapter = self.config.adapter
        assert isinstance(adapter, GrunConfig)
        todo = [(variant, size) for variant in self.sequence.variants for size in self._sizes(variant)]
        if not todo:
            return
        model, template, _ = _load(self.config, self.benchmark, self.execution, trained_in_place=False)
        base = cached(adapter.attach(model, self.config.seed), self.execution)
        assert isinstance(base, EditedModel)
        modules: dict[str, EditedModel] = {}
        seconds: dict[str, float] = {}
        for request in self.requests:
            with _module(self.sequence, self.execution, request).read_folder() as folder:
                modules[request.name] = adapter.load(model, folder)
                seconds[request.name] = json.loads((folder / TRAINING).read_text())["train_seconds"]
        base_rows = {(row["split"], row["item_index"], Applied()): row for row in self.base_items or ()}
        known = {variant.combination: dict(base_rows) for variant in self.sequence.variants}
        for variant, size in todo:
            assert variant.combination is not None
            assert variant.gate_threshold is not None
            started = time.perf_counter()
            present = {request.name: modules[request.name] for request in self.requests[:size]}
            adapted = combine(base, present, variant.combination, variant.gate_threshold)
            rows = evaluate_combined(
                adapted, template, self.benchmark.evaluation, self.config.evaluation, known[variant.combination], quiet
            )
            cost = {
                "train_seconds": seconds[self.requests[size - 1].name],
                "eval_seconds": time.perf_counter() - started,
                "added_parameters": size * sum(p.numel() for p in base.trainable_parameters()),
                "open_share": _open_shares(rows, len(adapted.layers), variant.gate_threshold),
            }
            if size == len(self.requests):
                prompts = [template.prompt_ids(item.question) for item in self.benchmark.evaluation["forget"]]
                cost["prefill_seconds"], cost["bare_prefill_seconds"] = prefill_seconds(
                    model, {int(layer): edit for layer, edit in adapted.edits.items()}, prompts[:PREFILL_PROMPTS]
                )
            self._write(variant, size, rows, cost, adapted)

    def run_chain(self) -> None:
        """States of one set of weights that every request changes."""
        (variant,) = self.sequence.variants
        adapter = self.config.adapter
        assert not isinstance(adapter, NoneConfig)
        missing = self._sizes(variant)
        if not missing:
            return
        folders = [self._weights(size) for size in range(len(self.requests) + 1)]
        # The weights of the last whole state, or of the one after it that was trained and not measured yet.
        begun = next((size for size in (missing[0], missing[0] - 1) if (folders[size] / TRAINING).exists()), 0)
        model, template, source = _load(
            self.config, self.benchmark, self.execution, trained_in_place=adapter.name == "full"
        )
        plans = [
            plan_of(self.config, replace(self.benchmark, forget_set=request.items), template, model, quiet)
            for request in self.requests[begun:]  # before an adapter is on: the reference model is the target model
        ]
        if begun:
            with folders[begun].read_folder() as folder:
                adapted: Adapted = cached(adapter.load(model, folder), self.execution)
        else:
            adapted = cached(adapter.attach(model, self.config.seed), self.execution)
        for size in range(max(begun, 1), len(self.requests) + 1):
            if size > begun:
                plan, reference = plans[size - begun - 1]
                done = unlearn_as(self.config, adapted, plan, reference, quiet)
                with folders[size].written_folder(last=TRAINING) as scratch:
                    save(adapted, adapter, source, scratch)
                    (scratch / TRAINING).write_text(json.dumps({"train_seconds": done.seconds}))
                folders[size - 1].remove()
            if size not in missing:
                continue
            started = time.perf_counter()
            adapted.train(False)
            rows = evaluate(adapted, template, self.benchmark.evaluation, self.config.evaluation, quiet)
            cost = {
                "train_seconds": json.loads((folders[size] / TRAINING).read())["train_seconds"],
                "eval_seconds": time.perf_counter() - started,
                "added_parameters": sum(p.numel() for p in adapted.trainable_parameters()),
            }
            self._write(variant, size, rows, cost, adapted)

    def _weights(self, size: int) -> Location:
        key = self.sequence.chain_key(self.requests[:size])
        return self.execution.folder / "modules" / key

    def _sizes(self, variant: Variant) -> list[int]:
        """How many requests have been met in each state whose rows are not there yet."""
        keys = [self.sequence.state_key(self.requests[:size], variant) for size in range(1, len(self.requests) + 1)]
        return [size for size, key in enumerate(keys, start=1) if not results.read_requests(self.execution.folder, key)]

    def _reference_items(self, start_from: Literal["target_model", "retain_model"]) -> list[ItemRow] | None:
        return results.read_items(self.execution.folder, reference_config(self.config, start_from).run_key)

    def _write(
        self, variant: Variant, size: int, rows: Sequence[ItemRow], cost: Mapping[str, Any], adapted: Adapted
    ) -> None:
        """The rows of one state; and of the last one every item."""
        key = self.sequence.state_key(self.requests[:size], variant)
        threshold = variant.gate_threshold or 0.0
        whole = _whole_scores(rows, self.gold_items, self.requests[:size], threshold)
        open_share = cost.get("open_share", {})
        common = {
            "run_key": key,
            "study": self.sequence.study,
            "method": self.config.method,
            "benchmark": self.config.benchmark.name,
            "forget_split": self.config.benchmark.forget_split,
            "model": self.config.model.name,
            "adapter": self.config.adapter.name,
            "forget_loss": self.config.forget_loss.name,
            "retain_loss": self.config.retain_loss,
            "seed": self.config.seed,
            "config_json": self.config.to_json(),
            "combination": variant.combination,
            "gate_threshold": variant.gate_threshold,
            "request_index": size,
            "request": self.requests[size - 1].name,
            **whole,
            **{name: value for name, value in cost.items() if name != "open_share"},
            **open_share.get("common", {}),
            "device": costs.device_name(adapted.device),
            "git_sha": costs.git_sha(),
            "created_at": datetime.now(UTC),
        }
        table = []
        for place, request in enumerate(self.requests, start=1):
            own = {
                "evaluated_index": place,
                "evaluated_request": request.name,
                "is_requested": place <= size,
                **_request_scores(rows, self.gold_items, request),
            }
            if "shares" in open_share:
                own["open_shares"] = open_share["shares"](request)
            table.append(common | own)
        last = size == len(self.requests)
        results.write_requests(self.execution.folder, key, table, rows if last else ())
        utility = whole.get("model_utility", whole.get("partial_model_utility"))
        how = "" if variant.combination is None else f" {variant.combination} at {variant.gate_threshold:g}"
        self.say(
            f"{self.sequence.study}, {self.config.method}{how}: request {size} of {len(self.requests)}, "
            f"forget ROUGE-L so far {whole['requested_rouge_l_recall']:.3f}, utility {utility:.3f}, "
            f"{cost['train_seconds']:.0f} s + {cost['eval_seconds']:.0f} s"
        )


def _load(
    config: RunConfig, benchmark: Benchmark, execution: Execution, *, trained_in_place: bool
) -> tuple[CausalLM, PromptTemplate, str]:
    source = prepared_model(config.model, benchmark, config.start_from, lambda done, total: None)
    model, tokenizer = load_pretrained(source, execution.torch_device(), trained_in_place=trained_in_place)
    return model, PromptTemplate.of(tokenizer), source


def _module(sequence: RequestSequence, execution: Execution, request: Request) -> Location:
    return execution.folder / "modules" / sequence.module_key(request)


def _whole_scores(
    rows: Sequence[ItemRow], gold: Sequence[ItemRow] | None, requests: Sequence[Request], gate_threshold: float
) -> dict[str, float]:
    """All requests so far taken together, and what was to be kept."""
    asked = {(request.split, index) for request in requests for index in request.indices}
    kept = [row | {"gate": None} for row in rows if row["split"] in ("retain", "real_authors", "world_facts")]
    forgotten = _as_forget(rows, asked)
    scores = score([*forgotten, *kept], None if gold is None else _as_forget(gold, asked), gate_threshold)
    whole = {f"requested_{name.removeprefix('forget_')}": v for name, v in scores.items() if name.startswith("forget_")}
    if "log10_forget_quality" in scores:
        whole["requested_quality"] = scores["forget_quality"]
        whole["requested_log10_quality"] = scores["log10_forget_quality"]
    whole |= {name: value for name, value in scores.items() if not name.startswith("forget_")}
    similar = [row["rouge_l_recall"] for row in rows if row["split"] == "similar"]
    if similar:
        whole["similar_rouge_l_recall"] = float(np.mean(similar))
    return {name: value for name, value in whole.items() if name in results.REQUESTS_SCHEMA.names}


def _request_scores(rows: Sequence[ItemRow], gold: Sequence[ItemRow] | None, request: Request) -> dict[str, float]:
    """One request's own items, scored as a forget set."""
    asked = {(request.split, index) for index in request.indices}
    own = _as_forget(rows, asked)
    if not own:
        return {}
    scores = score(own, None if gold is None else _as_forget(gold, asked), 0.0)
    return {name: value for name, value in scores.items() if name in results.REQUEST_METRICS}


def _as_forget(rows: Sequence[ItemRow], asked: set[tuple[str, int]]) -> list[ItemRow]:
    return [row | {"split": "forget", "gate": None} for row in rows if (row["split"], row["item_index"]) in asked]


def _open_shares(rows: Sequence[ItemRow], num_layers: int, gate_threshold: float) -> dict[str, Any]:
    """Whose gates open for whom: share of the prompts that open a gate of each request, at any layer."""
    threshold = gate_threshold or 0.5  # the soft gate is never quite shut

    def shares(chosen: Sequence[ItemRow]) -> list[float] | None:
        if not chosen:
            return None
        gates_BLK = np.array([row["gate"] for row in chosen]).reshape(len(chosen), num_layers, -1)
        return [float(share) for share in (gates_BLK >= threshold).any(axis=1).mean(axis=0)]

    def of_request(request: Request) -> list[float] | None:
        asked = {(request.split, index) for index in request.indices}
        return shares([row for row in rows if (row["split"], row["item_index"]) in asked])

    common: dict[str, Any] = {}
    for split in ("retain", "similar"):
        found = [row for row in rows if row["split"] == split]
        common[f"{split}_open_shares"] = shares(found)
        if found:
            common[f"{split}_gate_open_share"] = gate_open_share(np.array([row["gate"] for row in found]), threshold)
    return {"shares": of_request, "common": common}


@torch.no_grad()
def prefill_seconds(
    model: CausalLM, edits: Mapping[int, nn.Module], prompts: Sequence[tuple[int, ...]]
) -> tuple[float, float]:
    """Medians of one pass over a batch of prompts (with the edits at their last tokens, without), taken in turn."""
    inputs = left_padded(prompts, model)
    layers = decoder_layers(model)

    def edited(layer: int) -> Callable[..., Any]:
        run, edit = layers[layer].forward, edits[layer]

        def run_and_edit(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            hidden: Tensor = output_tensor(output)
            at_edit_BD, _ = edit(hidden[:, -1])
            return with_output_tensor(output, torch.cat([hidden[:, :-1], at_edit_BD[:, None]], dim=1))

        return run_and_edit

    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(PREFILL_REPEATS):
        for taken, replaced in zip(seconds, ([(layers[layer], edited(layer)) for layer in edits], []), strict=True):
            with patched(replaced):
                started = time.perf_counter()
                model(**inputs).logits.sum().item()  # waits for a GPU
                taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _digests(requests: Sequence[Request]) -> list[str]:
    return [request.digest for request in requests]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
