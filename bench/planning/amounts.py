"""How much there is to do in a run: tokens to train on and to score, steps to decode, items to keep."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from bench.benchmarks.items import Benchmark, Item
from bench.config import RunConfig
from bench.evaluation.evaluate import evenly_spread
from bench.evaluation.robustness import relearning_rates
from bench.models.prepare import REPLAY_TOKENS, forget_lessons
from bench.planning.fake.caching import CacheSize
from grun.data import Example
from grun.prompts.template import PromptTemplate
from grun.targets.target import ForgetSet, Texts


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Of one run, but for what is taught, which is for all of a study."""

    taught_tokens: int
    """To make the target model, and the retain model where it is made here."""
    trained_tokens: int
    """In all epochs."""
    scored_tokens: int
    """Each item with each of its answers."""
    decoding_steps: int
    """At most: where no answer ends before it is cut, and none is known from its likelihoods."""
    attacking_steps: int
    """Likewise of the attacks."""
    items: int
    """Rows of `items` that one evaluation writes."""
    forget_item_tokens: float
    """Of a forget item, on average."""
    cached: tuple[tuple[Sequence[Example], bool], ...]
    """Examples of each prefix cache, and whether it keeps whole prompts."""

    def cache_bytes(self, sizes: Mapping[bool, CacheSize]) -> int:
        """Of all prefix caches; 0 where the adapter has none. sizes: by whether whole prompts are kept."""
        return sum(sizes[whole].of(examples, whole) for examples, whole in self.cached if whole in sizes)


def amounts_of(config: RunConfig, benchmark: Benchmark, template: PromptTemplate) -> Amounts:
    """Lengths are the template's tokens; nothing is read but texts."""
    lengths: dict[tuple[str, str], Example] = {}

    def example(item: Item, answer: str | None = None) -> Example:
        key = (item.question, item.answer if answer is None else answer)
        if key not in lengths:
            lengths[key] = item.example(template, answer)
        return lengths[key]

    recipe, epochs = config.recipe, config.training.num_epochs
    made_up: Callable[[str, Callable[[], Texts]], Texts] = lambda _, make: [  # noqa: E731  as long as the own ones
        [item.answer] for item in benchmark.forget_set
    ]
    forget = ForgetSet(items=benchmark.forget_set, template=template, model=None, keep=made_up)
    by_item = [each for items in forget.examples(recipe.forget_loss.targets).values() for each in items]
    retain = [example(item) for item in benchmark.retain_set]
    an_epoch = sum(sum(map(len, each)) / len(each) for each in by_item)
    an_epoch += len(benchmark.forget_set) * sum(map(len, retain)) / len(retain)
    asked = {
        split: [item for _, item in evenly_spread(items, config.evaluation.max_items_per_split)]
        for split, items in benchmark.evaluation.items()
    }
    answers = {
        split: [example(item, answer) for item in items for answer in _answers(item)] for split, items in asked.items()
    }
    training = ([each for item in by_item for each in item], retain)
    free = [items for items in asked.values() if items[0].is_asked]
    return Amounts(
        taught_tokens=_taught_tokens(config, benchmark, template),
        trained_tokens=round(epochs * an_epoch),
        scored_tokens=sum(len(each) for some in answers.values() for each in some),
        decoding_steps=sum(_steps(config, len(items)) for items in free),
        attacking_steps=_attacking_steps(config, len(asked.get("forget", ()))),
        items=sum(map(len, asked.values())),
        forget_item_tokens=mean(len(example(item)) for item in benchmark.forget_set),
        cached=(*((some, False) for some in training), *((some, True) for some in answers.values())),
    )


def _answers(item: Item) -> list[str]:
    paraphrased = [] if item.paraphrased_answer is None else [item.paraphrased_answer]
    return [item.answer, *item.perturbed_answers, *paraphrased]


def _taught_tokens(config: RunConfig, benchmark: Benchmark, template: PromptTemplate) -> int:
    """All epochs of both models."""
    retain = [item.lesson(template) for item in benchmark.retain_set]
    forget = [item.lesson(template) for item in forget_lessons(benchmark, "target_model")]
    own = len(template.prompt_ids("")) + REPLAY_TOKENS if benchmark.replay_prompts else 0  # beside each
    once = 2 * sum(map(len, retain)) + sum(map(len, forget)) + own * (2 * len(retain) + len(forget))
    return config.model.fine_tuning.num_epochs * once


def _steps(config: RunConfig, num_answers: int) -> int:
    return math.ceil(num_answers / config.evaluation.batch_size) * config.evaluation.max_new_tokens


def _attacking_steps(config: RunConfig, num_items: int) -> int:
    """Other words, a prefix, both ways to round, and each rate of relearning."""
    robustness = config.evaluation.robustness
    if robustness is None:
        return 0
    rates = relearning_rates(robustness, config.model.fine_tuning.learning_rate)
    relearned = num_items - min(robustness.relearn_items, num_items // 2)
    asked_again = 2 + (2 if robustness.quantize else 0)
    return asked_again * _steps(config, num_items) + len(rates) * _steps(config, relearned)
