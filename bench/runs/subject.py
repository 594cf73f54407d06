"""The model on the table: a benchmark, the model that knows it, and an adapter on it, opened in one way only."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from safetensors import SafetensorError

from bench.benchmarks import hub_commits
from bench.benchmarks.items import Benchmark
from bench.benchmarks.keeping import NO_SET, own_questions
from bench.benchmarks.lengths import check_lengths
from bench.config import RunConfig, check_content
from bench.models.cache import cache_dir, max_cache_gb
from bench.models.external import blaming, models_named
from bench.models.prepare import Means, commits_of, prepared_model
from bench.models.pretrained import PretrainedConfig, context_length, load_pretrained, load_tokenizer
from bench.progress import Progress, quiet
from bench.results.storage import Location
from bench.runs.execution import Execution
from grun.data import Example
from grun.engine.edited import EditedModel
from grun.engine.prefix_cache import PrefixCaching
from grun.errors import Damaged
from grun.gates.openings import open_shares
from grun.model.forward import Adapted, CausalLM, PlainModel
from grun.prompts.template import PromptTemplate
from grun.unlearned import described
from grun.workers import ALONE, Workers

logger = logging.getLogger(__name__)


def with_own_questions(config: RunConfig, benchmark: Benchmark) -> Benchmark:
    """With the questions of the user's own files. Raises UserError as `own_questions`."""
    adapter, model = config.adapter, config.model
    if adapter.is_gated and adapter.keep_prompts:
        kept = own_questions(adapter.keep_prompts, benchmark, "adapter.keep_prompts")
        benchmark = replace(benchmark, keep_prompts=kept)
    if isinstance(model, PretrainedConfig) and model.replay_prompts:
        replayed = own_questions(model.replay_prompts, benchmark, "model.replay_prompts")
        benchmark = replace(benchmark, replay_prompts=replayed)
    return benchmark


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a run works on. Each part is opened when it is first asked for, and kept."""

    config: RunConfig
    execution: Execution
    progress: Progress = quiet
    """Told how far the preparation of the model is, where it has to be prepared."""
    workers: Workers = ALONE
    """Who prepares it together, this process one of them; each asks for it."""

    def __post_init__(self) -> None:
        """This process is about to work on it: torch gets its threads."""
        if self.execution.num_threads is not None:
            torch.set_num_threads(self.execution.num_threads)

    @cached_property
    def benchmark(self) -> Benchmark:
        """What is to be forgotten and kept."""
        check_content(self.config)
        return with_own_questions(self.config, self.config.benchmark.load())

    def prepare(self) -> None:
        """Make the model where it never was, without loading it."""
        self.source  # noqa: B018  opened by asking for it

    @cached_property
    def source(self) -> str:
        """The target or the retain model, made now where it never was, or an external one: a name that can be loaded.

        Raises UserError where that is of another vocabulary than the target model.
        """
        means = Means(
            device=str(self.device),
            workers=self.workers,
            accumulation_steps=self.execution.accumulation_steps,
            gradient_checkpointing=self.execution.gradient_checkpointing,
        )
        target = prepared_model(self.config.model, self.benchmark, self.config.start_from, self.progress, means)
        external = self.config.external
        if external is None:
            return target
        external.check(target)
        return external.model

    @cached_property
    def device(self) -> torch.device:
        """Where the model is. Raises UserError where there is no such device."""
        return self.execution.torch_device()

    @cached_property
    def _opened(self) -> tuple[CausalLM, Any]:
        device, prompt = "cpu" if self.execution.shard else self.device, self.config.model.prompt
        source, trained_in_place = self.source, self.config.adapter.trains_in_place
        named = models_named(self.config.model, self.config.external).items()
        with blaming(next((field for field, name in named if name == source), "model.name")):
            return load_pretrained(source, device, trained_in_place=trained_in_place, prompt=prompt)

    @cached_property
    def commits(self) -> str | None:
        """The commit of each repository of the hub that it is read from, as JSON; None where there is none."""
        read = {**hub_commits(self.config.benchmark), **commits_of(self.source)}
        return json.dumps(read, sort_keys=True) if read else None

    @property
    def model(self) -> CausalLM:
        """The model itself, before an adapter is on; still on the CPU where it is to be sharded."""
        return self._opened[0]

    @property
    def tokenizer(self) -> Any:
        """The model's own."""
        return self._opened[1]

    @cached_property
    def template(self) -> PromptTemplate:
        """How the model is asked. Raises UserError where an item of the benchmark is too long for it."""
        template = PromptTemplate.of(self.tokenizer, self.config.model.prompt)
        max_new_tokens = self.config.evaluation.max_new_tokens
        check_lengths(self.benchmark, template, context_length(self.model), max_new_tokens)
        return template

    @property
    def keep(self) -> list[Example]:
        """Prompts that gates are to stay shut for beside the retain set's; nobody looks at their answers."""
        return self._prompts(self.benchmark.keep_prompts)

    def in_no_set(self, adapted: Adapted, gate_thresholds: Sequence[float]) -> list[dict[str, float]]:
        """At each threshold, the column of a gated model that says how many prompts in no set at all open a gate."""
        asked = self._prompts(NO_SET)
        # One prefix for every trial; else each would run all of them through pyvene, and import it for that.
        adapted.announce(asked, generate=False, progress=partial(self.progress, "prefix cache, prompts in no set"))
        prompts = [example.prompt_ids for example in asked]
        shares = open_shares(cast(EditedModel, adapted), prompts, gate_thresholds)
        return [{"no_set_openings": share} for share in shares]

    def _prompts(self, questions: Sequence[str]) -> list[Example]:
        prompts = [self.template.prompt_ids(question) for question in questions]
        return [Example(prompt_ids=prompt, answer_ids=(0,)) for prompt in prompts]

    def shown_example(self) -> str:
        """The forget set's first item as the model is asked it and answers, special tokens included."""
        template = PromptTemplate.of(load_tokenizer(self.source), self.config.model.prompt)
        return template.shown(self.benchmark.forget_set[0].example(template))

    @property
    def module(self) -> Location:
        """Where what a run trains is kept."""
        return self.execution.folder / "modules" / self.config.train_key

    def attached(self) -> Adapted:
        """The model with a fresh adapter on."""
        return self._equipped(self.config.adapter.attach(self.model, self.config.seed))

    def loaded(self, module: Location) -> Adapted:
        """The model with what an earlier run trained. module: the folder that was saved.

        Raises Damaged where that is proven not to be what was saved; it is set aside then, and never deleted.
        """
        model = self.model
        try:
            with module.read_folder() as local:
                adapter = self.config.adapter
                if adapter.is_gated and adapter.max_false_openings is not None:
                    adapter, _ = described(local)  # at the threshold that was chosen
                return self._equipped(adapter.load(model, local))
        except (Damaged, SafetensorError, FileNotFoundError) as error:
            aside = module.set_aside()
            raise Damaged(str(module), f"is damaged, and kept as {aside.name}; train it again") from error

    def _equipped(self, adapted: Adapted) -> Adapted:
        """With the node's prefix caches behind it where the adapter leaves the model frozen, else as memory allows."""
        if isinstance(adapted, EditedModel):
            if self.execution.engine == "plain":
                return adapted.on_plain_path()
            max_bytes = int(max_cache_gb() * 1e9)
            caching = PrefixCaching(root=cache_dir() / "prefix", max_bytes=max_bytes, log=logger.warning)
            adapted.use_prefix_caching(caching)
        if isinstance(adapted, PlainModel) and self.execution.gradient_checkpointing and self.config.adapter.trains:
            adapted.checkpoint_gradients()
        return adapted
