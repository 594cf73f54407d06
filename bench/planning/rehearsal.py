"""One step of each part of a run, on the longest items there are: the run's own code, at the model's own size."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import nn

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import evaluate, own_questions
from bench.evaluation.reuse import evaluate_thresholds
from bench.evaluation.robustness import attack
from bench.models.prepare import REPLAY_TOKENS, Means, to_be_taught
from bench.planning.facts import Machine
from bench.planning.fake.caching import CacheSize, InMemory
from bench.planning.fake.memory import Spent, spending
from bench.planning.fake.stage import NEW_TOKENS, Stage, few_of, longest, new_model, shortened
from bench.planning.fake.tensors import rehearsing
from bench.runs.execution import Execution
from bench.runs.training import plan_of
from grun.data import Example
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted, CausalLM, PlainModel
from grun.prompts.template import PromptTemplate
from grun.sharding import shard
from grun.training.teach import Lessons, fine_tune
from grun.training.unlearn import unlearn
from grun.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run, as far as it was run."""

    spent: Spent
    tokens: int = 0
    """Of the examples it was run on."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What the parts of a run take of one worker; the names of `phases` are those that are there."""

    phases: dict[str, Phase]
    trained_parameters: int
    trained_bytes: int
    model_parameters: int
    cache_sizes: Mapping[bool, CacheSize]
    """Of a prefix cache that keeps whole prompts, and of one that does not; empty where the adapter has none."""
    can_checkpoint: bool
    """Whether activations can be computed again on the way back (`--gradient-checkpointing`)."""


def _nobody(done: int, total: int) -> None:
    """A `Tally` that is told to nobody."""


def taught(config: RunConfig, execution: Execution, machine: Machine, benchmark: Benchmark, tokenizer: Any) -> Phase:
    """How target and retain model are made, each in two steps of all workers."""
    teaching, template = config.model.fine_tuning, PromptTemplate.of(tokenizer, config.model.prompt)
    items = longest([*benchmark.forget_set, *benchmark.retain_set], teaching.batch_size, template)
    workers = Workers(size=execution.num_workers, sharded=execution.shard)
    means = Means(workers=workers, gradient_checkpointing=execution.gradient_checkpointing)
    with _joined(workers), rehearsing(on_gpu=machine.is_gpu):
        model = new_model(config, benchmark, machine, tokenizer, trained_in_place=True)
        lessons = Lessons(taught=[item.lesson(template) for item in items])
        if benchmark.replay_prompts:
            asked = sorted(map(template.prompt_ids, benchmark.replay_prompts), key=len)[-len(items) :]
            kept = [Example(prompt_ids=ids, answer_ids=ids[:1] * REPLAY_TOKENS) for ids in asked]
            lessons = Lessons.beside(model, lessons.taught, kept, _nobody)
        adapted = to_be_taught(model, means)
        with spending([model, *([lessons.reference.head] if lessons.reference else [])]) as spent:
            fine_tune(
                adapted,
                lessons,
                replace(teaching, num_epochs=2),
                workers=workers,
                accumulation_steps=execution.accumulation_steps,
            )
    return Phase(spent=spent, tokens=2 * sum(map(len, [*lessons.taught, *lessons.kept])) // workers.size)


def rehearse(
    config: RunConfig, execution: Execution, machine: Machine, benchmark: Benchmark, tokenizer: Any
) -> Rehearsed:
    """All parts of a run but the teaching, each once.

    execution: its workers, and what spares memory; nothing is kept in its folder.
    """
    template = PromptTemplate.of(tokenizer, config.model.prompt)
    few, short = few_of(benchmark, template, config), shortened(config)
    workers = Workers(size=execution.num_workers, sharded=execution.shard)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="grun-bench-plan-"))
        stack.enter_context(_joined(workers))
        stack.enter_context(rehearsing(on_gpu=machine.is_gpu))
        execution = replace(execution, results=Path(folder), num_threads=None)
        stage = Stage(config=short, execution=execution, few=few, words=tokenizer, machine=machine)
        caching = InMemory()
        adapted, phases = trained(stage, workers, caching)
        trainable = adapted.trainable_parameters()
        adapted.train(False)
        phases |= _asked(stage, adapted, config.evaluation.max_new_tokens)
        return Rehearsed(
            phases=phases,
            trained_parameters=sum(weight.numel() for weight in trainable),
            trained_bytes=sum(weight.nbytes for weight in trainable),
            model_parameters=sum(weight.numel() for weight in stage.model.parameters()),
            cache_sizes=caching.sizes,
            can_checkpoint=isinstance(adapted, PlainModel) and config.adapter.trains,
        )


@contextmanager
def _joined(workers: Workers) -> Iterator[None]:
    """This process as the first of a group whose others are not there."""
    if workers.size == 1:
        yield
        return
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=workers.rank, world_size=workers.size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _modules(adapted: Adapted) -> list[nn.Module]:
    return [cast(Any, adapted).model, *([adapted.edits] if isinstance(adapted, EditedModel) else [])]


def trained(stage: Stage, workers: Workers, caching: InMemory) -> tuple[Adapted, dict[str, Phase]]:
    """As `bench.runs.training.train_or_load` does it where nothing is there yet."""
    config, phases = stage.config, {}
    if stage.execution.shard:
        config.adapter.attach(stage.model, config.seed)
        shard(stage.model, stage.device, workers)
    if not config.adapter.trains:
        return stage.attached(), {}
    with spending([stage.model]) as spent:
        plan, reference = plan_of(config, stage, stage.few, workers)
    if reference is not None:
        phases["reference"] = Phase(spent=spent)
    adapted = stage.attached()
    if isinstance(adapted, EditedModel) and stage.execution.engine == "auto":
        adapted.use_prefix_caching(caching)
    known = [*plan.forget, *plan.retain]
    with spending(_modules(adapted)) as spent:
        adapted.announce(plan.forget, generate=False, progress=_nobody)
        adapted.announce(plan.retain, generate=False, progress=_nobody)
    if isinstance(adapted, EditedModel):
        phases["prefix"] = Phase(spent=spent, tokens=sum(map(len, known)))
    with spending(_modules(adapted)) as spent:
        unlearn(adapted, plan, config.recipe, reference)
    examples = [example for step in plan.steps for part in step for example in part.examples.all]
    phases["train"] = Phase(spent=spent, tokens=sum(map(len, examples)))
    return adapted, phases


def _asked(stage: Stage, adapted: Adapted, max_new_tokens: int) -> dict[str, Phase]:
    """How it is evaluated. max_new_tokens: of an answer, in the run itself."""
    config, phases = stage.config, {}
    asking = Asking(adapted=adapted, template=stage.template, config=config.evaluation)
    splits = stage.few.evaluation
    questions = {split: own_questions(asking, split, items) for split, items in splits.items()}  # announces them
    with spending(_modules(adapted)) as spent:
        if isinstance(adapted, EditedModel) and config.adapter.is_gated:
            evaluate_thresholds(asking, splits, [config.adapter.gate_threshold], [])
        else:
            evaluate(asking, splits)
    examples = [example for each in questions.values() for question in each for _, example in question.answers]
    phases["score"] = Phase(spent=spent, tokens=sum(map(len, examples)))
    batch = config.evaluation.batch_size
    for each in questions.values():
        if not each[0].item.is_asked:
            continue
        prompts = [question.prompt_ids for question in each][:batch]
        with spending(_modules(adapted)) as spent:
            adapted.generate(prompts, NEW_TOKENS)
        spent.peak["activations"] += (max_new_tokens - NEW_TOKENS) * len(prompts) * _kv_bytes(stage.model)
        phases["decode"] = Phase(spent=spent)
    if config.evaluation.robustness is not None:
        numbered = list(enumerate(stage.few.evaluation["forget"]))
        with spending(_modules(adapted)) as spent:
            attack(asking, numbered, config.evaluation.robustness, config.model.fine_tuning.learning_rate)
        phases["attacks"] = Phase(spent=spent)
    return phases


def _kv_bytes(model: CausalLM) -> int:
    """Keys and values of a token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
