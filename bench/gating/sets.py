"""Which prompts gates are fitted to, and which they are asked about."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.benchmarks.items import Benchmark, Item
from bench.benchmarks.keeping import NO_SET
from bench.benchmarks.tofu import TofuConfig
from bench.gating.states import Prompt
from bench.runs.subject import Subject
from bench.sequential.request import requests_of
from grun.prompts.template import PromptTemplate

HELD_BACK = 0.2
"""Share of the questions to be kept that nothing is fitted to. Drawn: every fifth would be the same question each time
where all subjects are asked alike."""


@dataclass(frozen=True, kw_only=True)
class GateSets:
    """Prompts as token ids, each once in its set. Nothing that is asked was fitted to, but for what is forgotten."""

    requests: Mapping[str, Sequence[Prompt]]
    """What each request's gate is fitted to open for."""
    reworded: Mapping[str, Sequence[Prompt]]
    """The same questions in other words, where there are any."""
    keep: Sequence[Prompt]
    """What every gate is fitted to stay shut for."""
    others: Mapping[str, Sequence[Prompt]]
    """What else is to find every gate shut, by set."""

    @property
    def all(self) -> Iterator[Prompt]:
        """Whose hidden states are needed."""
        for part in (*self.requests.values(), *self.reworded.values(), self.keep, *self.others.values()):
            yield from part


def requested(subject: Subject, num_requests: int) -> tuple[Benchmark, Mapping[str, Sequence[Item]]]:
    """The benchmark of so many requests, and their items by name; no model is needed. Raises as `gate_sets`."""
    config = subject.config.benchmark
    benchmark = config.load_authors(num_requests) if isinstance(config, TofuConfig) else subject.benchmark
    return benchmark, {request.name: request.items for request in requests_of(benchmark, num_requests, ())}


def gate_sets(subject: Subject, num_requests: int) -> GateSets:
    """The prompts of so many requests. Raises UserError where the benchmark has not so many."""
    benchmark, requests = requested(subject, num_requests)
    template = subject.template
    own = {name: _asked(items, template) for name, items in requests.items()}
    forgotten = {prompt for prompts in own.values() for prompt in prompts}
    kept = [prompt for prompt in _asked(benchmark.retain_set, template) if prompt not in forgotten]
    held_back = random.Random(0).sample(kept, round(HELD_BACK * len(kept)))
    keep = [*_without(kept, held_back), *(example.prompt_ids for example in subject.keep)]
    fitted = forgotten | set(keep)
    return GateSets(
        requests=own,
        reworded={name: _without(_reworded(items, template), fitted) for name, items in requests.items()},
        keep=keep,
        others={name: _without(prompts, fitted) for name, prompts in _others(benchmark, held_back, template)},
    )


def _others(
    benchmark: Benchmark, held_back: Sequence[Prompt], template: PromptTemplate
) -> Iterator[tuple[str, Sequence[Prompt]]]:
    """By the names of the columns."""
    yield "held_back", held_back
    yield "kept_reworded", _reworded(benchmark.retain_set, template)
    for name in ("real_authors", "world_facts"):
        yield name, _asked(benchmark.evaluation.get(name, ()), template)
    yield "strangers", _asked(benchmark.evaluation.get("holdout", ()), template)
    yield "no_set", [template.prompt_ids(question) for question in NO_SET]


def _asked(items: Iterable[Item], template: PromptTemplate) -> list[Prompt]:
    return list(dict.fromkeys(item.example(template).prompt_ids for item in items))


def _reworded(items: Iterable[Item], template: PromptTemplate) -> list[Prompt]:
    return _asked((replace(item, question=text) for item in items if (text := item.paraphrased_question)), template)


def _without(prompts: Iterable[Prompt], others: Iterable[Prompt]) -> list[Prompt]:
    left_out = set(others)
    return [prompt for prompt in prompts if prompt not in left_out]
