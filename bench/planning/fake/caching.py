"""Prefix caches that are gone with the process, and what they would take."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grun.data import Example
from grun.engine.prefix_builder import Builder
from grun.engine.prefix_cache import PrefixCache, PrefixCaching
from grun.engine.prefix_layout import Layout
from grun.model.forward import Tally


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """What a prefix cache takes, in bytes."""

    per_prompt_token: float
    per_answer_token: float

    def of(self, examples: Sequence[Example], whole_prompts: bool) -> int:
        """Of a cache of these examples."""
        layout = Layout(examples, whole_prompts)
        answers = sum(len(example.answer_ids) for example in layout.examples)
        return round(self.per_prompt_token * sum(layout.kv_lengths) + self.per_answer_token * answers)


@dataclass(frozen=True, kw_only=True)
class InMemory(PrefixCaching):
    """Whose caches are gone with it, and that remembers what they take."""

    root: Path = Path()
    max_bytes: int = 0
    log: Callable[[str], None] = logging.getLogger(__name__).warning
    sizes: dict[bool, CacheSize] = field(default_factory=dict)

    def cache_of(self, builder: Builder, weights: Callable[[], str], progress: Tally) -> PrefixCache:
        """See `PrefixCaching`."""
        layout = builder.layout
        shards = [builder.kept(each) for each in layout.shards]
        prompts, answers = (sum(len(each[name]) for each in shards) for name in ("kv", "hidden"))
        self.sizes[layout.whole_prompts] = CacheSize(
            per_prompt_token=sum(each["kv"].nbytes for each in shards) / max(1, prompts),
            per_answer_token=sum(each["hidden"].nbytes for each in shards) / answers,
        )
        return PrefixCache(layout, builder.first_layer, shards)
