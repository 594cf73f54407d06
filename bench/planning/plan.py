"""Studies before they are run: memory, hours, price and disk of each, and the first thing that does not fit."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna

from bench.config import RunConfig
from bench.planning import Cluster
from bench.planning.amounts import amounts_of
from bench.planning.facts import gpu
from bench.planning.fake.stage import tokenizer_of
from bench.planning.fake.texts import benchmark_of
from bench.planning.fit import problem, too_large, usable_bytes
from bench.planning.hours import Work
from bench.planning.measured import Rates, at_rates, check_measurable, measured, reached
from bench.planning.rehearsal import Phase, rehearse, taught
from bench.progress import Progress
from bench.runs.execution import Execution
from bench.runs.related import prerequisites
from bench.runs.subject import with_own_questions
from bench.spaces.search_space import SweepConfig
from grun.prompts.template import PromptTemplate

Record = dict[str, Any]
"""Plain data, as `--format json` prints it."""


def plan(
    studies: Sequence[SweepConfig],
    execution: Execution,
    cluster: Cluster,
    progress: Progress,
    *,
    rates: Rates | None = None,
    measure: bool = False,
) -> Record:
    """Every study by its first trial, and all together: what several are measured with is made once.

    rates: instead of the cluster's own. measure: what fits is also run, on random weights, and its own rates count.
    Raises UserError where something is not known, cannot be read, or cannot be measured here.
    """
    if measure:
        check_measurable(execution)
    clusters = [cluster if rates is None else reached(cluster, study, rates) for study in studies]
    records, taught_already = [], dict[str, Phase]()
    for done, (study, own) in enumerate(zip(studies, clusters, strict=True)):
        progress(f"plan {study.study}", done, len(studies))
        records.append(_planned(study, execution, own, taught_already, measure))
    progress("plan", len(studies), len(studies))
    once = sum({record["measured_with"]: record["once_gpu_hours"] for record in records}.values())
    hours = once + sum(record["num_trials"] * record["trial_gpu_hours"] for record in records)
    return {
        "gpu": cluster.gpu,
        "num_gpus": cluster.num_gpus,
        "price": cluster.price,
        "studies": records,
        "once_gpu_hours": once,
        "gpu_hours": hours,
        "hours": hours / cluster.num_gpus,
        "cost": None if cluster.price is None else hours * cluster.price,
    }


def first_trial(study: SweepConfig) -> RunConfig:
    """What the study begins with."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=study.seed))
    for point in study.initial_parameters():
        drawn.enqueue_trial(point)
    return study.run(study.sample(drawn.ask()))


def _planned(
    study: SweepConfig, execution: Execution, cluster: Cluster, taught_already: dict[str, Phase], measure: bool
) -> Record:
    """taught_already: how models are made, by the runs that they are made for; added to."""
    config, machine = first_trial(study), gpu(cluster.gpu)
    benchmark, is_made_up = benchmark_of(config.benchmark)
    benchmark = with_own_questions(config, benchmark)
    tokenizer = tokenizer_of(config, benchmark)
    measured_with = " ".join(each.run_key for each in prerequisites(config))
    rehearsed = rehearse(config, execution, machine, benchmark, tokenizer)
    if config.model.fine_tuning.num_epochs:
        if measured_with not in taught_already:
            taught_already[measured_with] = taught(config, execution, machine, benchmark, tokenizer)
        rehearsed = replace(rehearsed, phases={"teach": taught_already[measured_with], **rehearsed.phases})
    work = Work(
        study=study,
        config=config,
        execution=execution,
        cluster=cluster,
        machine=machine,
        amounts=amounts_of(config, benchmark, PromptTemplate.of(tokenizer, config.model.prompt)),
        rehearsed=rehearsed,
    )
    found = None
    if measure and not too_large(work, ("teach", "attacks")):
        step_flop = rehearsed.phases["train"].spent.flop / 2  # it was two steps
        found = measured(config, execution, machine, benchmark, tokenizer, step_flop)
        work = replace(work, cluster=at_rates(cluster, found))
    return {
        "measured_with": measured_with,
        "made_up_texts": is_made_up,
        "measured": None if found is None else asdict(found),
        **_record(work),
    }


def _record(work: Work) -> Record:
    usable, rehearsed, amounts = usable_bytes(work), work.rehearsed, work.amounts
    trial, once = work.trial_seconds(), work.once_seconds()
    return {
        "study": work.study.study,
        "method": work.config.method,
        "model": work.config.model.name,
        "num_workers": work.execution.num_workers,
        "num_trials": work.study.num_trials,
        "model_parameters": rehearsed.model_parameters,
        "trained_parameters": rehearsed.trained_parameters,
        "usable_gb": usable / 1e9,
        "peak_gb": {
            name: {part: size / 1e9 for part, size in (*phase.spent.peak.items(), ("total", phase.spent.total))}
            for name, phase in rehearsed.phases.items()
        },
        "problem": problem(work),
        "mfu": work.cluster.mfu,
        "decode_ms": work.cluster.decode_ms,
        "tokens": {
            "taught": amounts.taught_tokens,
            "trained": amounts.trained_tokens,
            "scored": amounts.scored_tokens,
        },
        "pflop": {
            "teach": work.flop("teach", amounts.taught_tokens) / 1e15,
            "train": work.flop("train", amounts.trained_tokens) / 1e15,
            "score": work.flop("score", amounts.scored_tokens) / 1e15,
        },
        "decoding_steps": amounts.decoding_steps + amounts.attacking_steps,
        "trial_gpu_seconds": trial,
        "trial_gpu_hours": sum(trial.values()) / 3600,
        "once_gpu_seconds": once,
        "once_gpu_hours": sum(once.values()) / 3600,
        "storage_gb": work.storage_gb(),
    }
