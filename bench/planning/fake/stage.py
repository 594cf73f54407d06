"""The model on the table at its own size, holding nothing, and the few items that it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from bench.benchmarks.items import Benchmark, Item
from bench.config import RunConfig
from bench.models.pretrained import TinyConfig, dtype_of, load_tokenizer, new_tiny_model, quiet_transformers
from bench.planning.facts import MODELS, Machine, model_config
from bench.planning.fake.texts import Words
from bench.runs.subject import Subject
from grun.model.forward import CausalLM, set_answer_ends
from grun.prompts.template import PromptTemplate

CPU = torch.device("cpu")
NEW_TOKENS = 3
"""Decoding steps that are run; what the further ones add is keys and values alone."""


@dataclass(frozen=True, kw_only=True)
class Stage(Subject):
    """A Subject whose model is drawn at random, or holds nothing in a rehearsal, and whose benchmark is a few items of
    the whole one."""

    few: Benchmark
    words: Any
    """Its tokenizer."""
    machine: Machine
    place: torch.device = CPU
    """Where the model is made."""

    @cached_property
    def benchmark(self) -> Benchmark:
        """See `Subject`."""
        return self.few

    @cached_property
    def source(self) -> str:
        """See `Subject`: there is none."""
        return str(self.config.model.name)

    @cached_property
    def device(self) -> torch.device:
        """See `Subject`."""
        return self.place

    @cached_property
    def _opened(self) -> tuple[CausalLM, Any]:
        in_place = self.config.adapter.trains_in_place
        with self.place:
            model = new_model(self.config, self.few, self.machine, self.words, trained_in_place=in_place)
        return model.to(self.place), self.words


def new_model(
    config: RunConfig, benchmark: Benchmark, machine: Machine, tokenizer: Any, *, trained_in_place: bool
) -> CausalLM:
    """As it would be opened on the machine."""
    from transformers import AutoModelForCausalLM

    if isinstance(config.model, TinyConfig):
        model, _ = new_tiny_model(config.model, _texts(benchmark))
    else:
        dtype = dtype_of(on_gpu=machine.is_gpu, trained_in_place=trained_in_place)
        with quiet_transformers():
            model = AutoModelForCausalLM.from_config(model_config(config.model), dtype=dtype)
    set_answer_ends(model, PromptTemplate.of(tokenizer, config.model.prompt))
    return model.eval()


def tokenizer_of(config: RunConfig, benchmark: Benchmark) -> Any:
    """The model's own, where it is at hand; else a stand-in of the same vocabulary."""
    if isinstance(config.model, TinyConfig):
        return new_tiny_model(config.model, _texts(benchmark))[1]
    if config.model.name not in MODELS:
        return load_tokenizer(config.model.name)
    facts = MODELS[config.model.name]
    return Words(**{name: facts[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")})


def _texts(benchmark: Benchmark) -> list[str]:
    items = [*benchmark.forget_set, *benchmark.retain_set, *benchmark.knowledge_set]
    return [text for item in items for text in item.pair]


def longest(items: Sequence[Item], count: int, template: PromptTemplate) -> list[Item]:
    return sorted(items, key=lambda item: -len(item.example(template)))[:count]


def few_of(benchmark: Benchmark, template: PromptTemplate, config: RunConfig) -> Benchmark:
    """A step of the longest items, and a batch of the longest that are answered freely, and of those that are not."""
    step, batch = config.training.batch_size, config.evaluation.batch_size
    asked: dict[bool, tuple[str, Sequence[Item]]] = {}
    for name, items in benchmark.evaluation.items():
        few = [replace(item, perturbed_answers=item.perturbed_answers[:1]) for item in longest(items, batch, template)]
        kind = few[0].is_asked
        if kind not in asked or len(few[0].example(template)) > len(asked[kind][1][0].example(template)):
            asked[kind] = name, few
    if config.evaluation.robustness is not None:  # it asks for the forget set
        asked[True] = "forget", longest(benchmark.evaluation["forget"], batch, template)
    return replace(
        benchmark,
        forget_set=longest(benchmark.forget_set, step, template),
        retain_set=longest(benchmark.retain_set, step, template),
        evaluation=dict(asked.values()),
        told=(),  # a model that holds nothing writes nothing
    )


def shortened(config: RunConfig) -> RunConfig:
    """Two steps, the second of which finds the optimiser's state there; a few tokens an answer."""
    evaluation = replace(config.evaluation, max_new_tokens=NEW_TOKENS)
    if evaluation.robustness is not None:
        rate = (config.model.fine_tuning.learning_rate,)
        attacks = replace(evaluation.robustness, relearn_steps=2, relearn_learning_rates=rate)
        evaluation = replace(evaluation, robustness=attacks)
    return replace(config, training=replace(config.training, num_epochs=2), evaluation=evaluation)
