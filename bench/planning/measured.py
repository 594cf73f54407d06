"""The same steps for real, on weights drawn at random: what they take of the GPU at hand."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.benchmarks.items import Benchmark
from bench.config import RunConfig
from bench.evaluation.asking import Asking
from bench.evaluation.evaluate import own_questions
from bench.planning import Cluster
from bench.planning.facts import Machine
from bench.planning.fake.caching import InMemory
from bench.planning.fake.stage import Stage, few_of
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.training import plan_of
from bench.spaces.search_space import SweepConfig
from grun.engine.edited import EditedModel
from grun.errors import UserError
from grun.prompts.template import PromptTemplate
from grun.training.unlearn import unlearn

STEPS = 5
"""Training steps that are timed, behind a first one that is not."""
NEW_TOKENS = 32
"""Decoding steps that are timed together, behind the pass over the prompts."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One worker's."""

    device: str
    """The GPU's own name, or cpu."""
    step_ms: float
    """Median of the training steps."""
    step_tokens: int
    peak_gb: float
    """Of training, with what comes before it."""
    mfu: float
    """FLOP of a step, as they were counted without running it, over what the GPU does at most in that time."""
    decode_ms: float | None
    """Of a decoding step of a batch; None where nothing is answered freely."""


Rates = Mapping[str, Measured]
"""By adapter."""


def check_measurable(execution: Execution) -> None:
    """Raises UserError where it is of several workers, or there is no GPU and no CPU was asked for."""
    if execution.num_workers > 1:
        raise UserError("--measure", "times one worker; leave --num-workers and --shard out")
    if execution.torch_device().type == "cpu" and execution.device == "auto":
        raise UserError("--measure", "torch sees no GPU here; --device cpu times the CPU")


def measured(
    config: RunConfig, execution: Execution, machine: Machine, benchmark: Benchmark, tokenizer: Any, step_flop: float
) -> Measured:
    """Train on a batch of the longest items, then answer a batch of prompts.

    execution: of one worker. machine: whose peak the speed is related to. step_flop: of one training step.
    """
    device = execution.torch_device()
    few = few_of(benchmark, PromptTemplate.of(tokenizer, config.model.prompt), config)
    config = replace(config, training=replace(config.training, num_epochs=STEPS + 1))
    with TemporaryDirectory(prefix="grun-bench-plan-") as folder:
        stage = Stage(
            config=config,
            execution=replace(execution, results=Path(folder)),
            few=few,
            words=tokenizer,
            machine=machine if device.type == "cuda" else replace(machine, name="cpu"),
            place=device,
        )
        costs.reset_peak_memory(device)
        plan, reference = plan_of(config, stage, few)
        adapted = stage.attached()
        if isinstance(adapted, EditedModel) and execution.engine == "auto":
            adapted.use_prefix_caching(InMemory())
        ended: list[float] = []
        unlearn(adapted, plan, config.recipe, reference, report=lambda step: ended.append(_now(device)))
        seconds = median(after - before for before, after in pairwise(ended))
        peak = costs.peak_memory_gb(device)
        adapted.train(False)
        examples = [example for part in plan.steps[0] for example in part.examples.all]
        return Measured(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            step_ms=1000 * seconds,
            step_tokens=sum(map(len, examples)),
            peak_gb=peak,
            mfu=step_flop / seconds / (machine.tflops * 1e12),
            decode_ms=_decode_ms(Asking(adapted=adapted, template=stage.template, config=config.evaluation), few),
        )


def _decode_ms(asking: Asking, few: Benchmark) -> float | None:
    """Of the first split that is answered freely: what further tokens add to one."""
    for split, items in few.evaluation.items():
        if items[0].is_asked:
            prompts = [question.prompt_ids for question in own_questions(asking, split, items)]
            seconds = []
            for count in (1 + NEW_TOKENS, 1, 1 + NEW_TOKENS):  # the first one warms up: a GPU's kernels are loaded then
                started = _now(asking.adapted.device)
                asking.adapted.generate(prompts[: asking.config.batch_size], count)
                seconds.append(_now(asking.adapted.device) - started)
            return 1000 * (seconds[2] - seconds[1]) / NEW_TOKENS
    return None


def _now(device: torch.device) -> float:
    """Once all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_rates(file: Path, gpu: str) -> Rates:
    """Of a record that `--measure` left. gpu: which they are wanted of, as the record calls it.

    Raises UserError where it is none, or of another GPU.
    """
    try:
        record = json.loads(file.read_bytes())
        of, studies = record["gpu"], [study for study in record["studies"] if study["measured"]]
        found = {_adapter(study["method"]): Measured(**study["measured"]) for study in studies}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("--rates", f"{file} is not what `plan --measure --format json` prints") from error
    if of != gpu:
        raise UserError("--rates", f"{file} is of {of}, and --gpu is {gpu}; plan with the one that was measured")
    if not found:
        raise UserError("--rates", f"nothing was measured in {file}")
    return found


def reached(cluster: Cluster, study: SweepConfig, rates: Rates) -> Cluster:
    """At the rates of the study's adapter. Raises UserError where there are none."""
    adapter = study.run({}).adapter.name
    if adapter not in rates:
        raise UserError("--rates", f"has {', '.join(rates)}, and {study.study} trains {adapter}; measure that, too")
    return at_rates(cluster, rates[adapter])


def at_rates(cluster: Cluster, found: Measured) -> Cluster:
    """With the rates that were measured, and its own where one was not."""
    return replace(cluster, mfu=found.mfu, decode_ms=found.decode_ms or cluster.decode_ms)


def _adapter(method: str) -> str:
    return method.split("+")[0].removesuffix("_latched")
