"""What is asked to be forgotten, in which order, by which method; and the keys of all that comes of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal, Self, get_args

from bench.benchmarks.items import Benchmark, Item
from bench.config import RunConfig, check_content
from bench.content import digest
from grun.errors import UserError
from grun.sequential import Combination

ExtraRequest = Literal["repeat", "unknown"]


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
        return digest([[item.pair for item in self.items], self.seed_offset])


def requests_of(
    benchmark: Benchmark, num_requests: int | None, extra_requests: Sequence[ExtraRequest]
) -> list[Request]:
    """The benchmark's first requests, in order, then the hard cases.

    num_requests: None: all. extra_requests: `repeat`, the first one again; `unknown`, the holdout set, which the model
    never knew. Raises UserError where the benchmark has not so many, or no holdout set, or names one like a hard case.
    """
    config = benchmark.config
    if not benchmark.requests:
        raise UserError("benchmark", f"{config.name} has no requests here; use one that has, such as authors")
    count = len(benchmark.requests) if num_requests is None else num_requests
    if count > len(benchmark.requests):
        problem = f"{count}, but {config.name} {config.forget_split} has {len(benchmark.requests)}"
        raise UserError("num_requests", problem)
    taken = benchmark.requests.keys() & get_args(ExtraRequest)
    if taken:
        raise UserError("benchmark", f"{min(taken)} stands for a hard case; give that request another name")
    requests = []
    asked = [*benchmark.requests.values()]
    split = next(name for name, items in benchmark.evaluation.items() if asked[0][0] in items)
    place = {item.pair: index for index, item in enumerate(benchmark.evaluation[split])}
    for name, items in islice(benchmark.requests.items(), count):
        indices = tuple(place[item.pair] for item in items)
        requests.append(Request(name=name, split=split, indices=indices, items=tuple(items)))
    for extra in extra_requests:
        if extra == "repeat":
            requests.append(replace(requests[0], name="repeat", seed_offset=1))
            continue
        strangers = benchmark.evaluation.get("holdout")
        if strangers is None:
            raise UserError("extra_requests", f"{config.name} has no holdout set here; leave `unknown` out")
        indices = tuple(range(len(strangers)))
        requests.append(Request(name="unknown", split="holdout", indices=indices, items=tuple(strangers)))
    return requests


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How the modules of several requests are used together; nothing is trained for it."""

    combination: Combination | None
    """None: the adapter is a chain."""
    gate_threshold: float | None
    """None: there are no gates, or their threshold is chosen anew for each number of modules."""


@dataclass(frozen=True, kw_only=True)
class RequestSequence:
    """One method, and the requests it is put to."""

    study: str
    config: RunConfig
    num_requests: int | None
    extra_requests: tuple[ExtraRequest, ...]
    variants: tuple[Variant, ...]
    """The first one is the method's own, the others show what else its modules could do. A chain has one."""
    only_after: tuple[int, ...] = ()
    """Measure the states after so many requests alone, and meet no more than the last of them needs; empty: each."""

    def requests(self) -> list[Request]:
        """What is to be forgotten, in order; reads the benchmark."""
        check_content(self.config)
        return requests_of(self.config.benchmark.load(), self.num_requests, self.extra_requests)

    def by_combination(self) -> list[Self]:
        """The same work in parts that share no measurement, and can be done at the same time."""
        parts: dict[Combination | None, list[Variant]] = {}
        for variant in self.variants:
            parts.setdefault(variant.combination, []).append(variant)
        return [replace(self, variants=tuple(variants)) for variants in parts.values()]

    def state_key(self, requests: Sequence[Request], variant: Variant) -> str:
        """Names the rows of the state after these requests. The same in a longer sequence."""
        config, names = self.config.to_dict(), [request.digest for request in requests]
        return digest([self.config.train_key, config["evaluation"], names, asdict(variant)])

    def module_key(self, request: Request) -> str:
        """Names the module that is trained for a request, whatever the others are."""
        return digest([self.config.train_key, request.digest])

    def chain_key(self, requests: Sequence[Request]) -> str:
        """Names the weights after these requests."""
        return digest([self.config.train_key, [request.digest for request in requests], "chain"])
