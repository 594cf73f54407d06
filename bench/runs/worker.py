"""One worker's part in a run: train or load, evaluate, write the rows. It makes no other run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.benchmarks import SPLITS
from bench.config import RunConfig
from bench.evaluation.asking import Asking, RobustnessConfig, drafts_of
from bench.evaluation.evaluate import evaluate, evenly_spread
from bench.evaluation.reuse import evaluate_thresholds
from bench.evaluation.robustness import attack, quantized, relearned
from bench.models.prepare import StartFrom
from bench.progress import Progress, quiet
from bench.results import store
from bench.runs import costs
from bench.runs.execution import Execution
from bench.runs.related import at_threshold
from bench.runs.rows import Row, failed_row, finished_row
from bench.runs.subject import Subject
from bench.runs.training import checkpoint_of, train_or_load
from grun.adapters.grun import set_gate_threshold
from grun.engine.edited import EditedModel
from grun.model.forward import Adapted
from grun.workers import ALONE, Workers

Known = Mapping[StartFrom, Sequence[Row]]
"""Items of what a run is measured with."""


def prepare_subject(
    config: RunConfig, execution: Execution, *, workers: Workers = ALONE, progress: Progress = quiet
) -> None:
    """Have its model made where it never was."""
    Subject(config=config, execution=execution, progress=progress, workers=workers).prepare()


def work(
    configs: Sequence[RunConfig],
    execution: Execution,
    known: Known,
    *,
    study: str | None = None,
    workers: Workers = ALONE,
    progress: Progress = quiet,
) -> list[Row]:
    """Train and evaluate; the first worker writes the rows and returns them, one a config.

    configs: they differ in their gate threshold alone. An error becomes a row of `runs` too.
    """
    config = configs[0]
    subject = Subject(config=config, execution=execution, progress=progress, workers=workers)
    costs.settle()
    costs.reset_peak_memory(subject.device)
    subject.prepare()  # a model that cannot be prepared is no failed run
    try:
        adapted, trained = train_or_load(subject, workers)
        as_trained = [at_threshold(each, trained.get("gate_threshold")) for each in configs]
        started = time.perf_counter()
        measured = _measure(as_trained, subject, adapted, known, workers)
        cost = trained | {
            # A curve of thresholds is one evaluation: its rows share the seconds.
            "eval_seconds": (time.perf_counter() - started) / len(configs),
            "peak_memory_gb": costs.peak_memory_gb(subject.device),
            "hub_commits": subject.commits,
        }
        if not workers.is_first:
            return []
        rows = []
        thresholds = [at.adapter.gate_threshold for at in as_trained if at.adapter.is_gated]
        more = subject.in_no_set(adapted, thresholds) if thresholds else [{} for _ in configs]
        for each, items, column in zip(configs, measured, more, strict=True):
            row = finished_row(each, adapted, items, known.get("retain_model"), cost | column, study)
            store.write_run(execution.folder, row, items)
            rows.append(row)
        checkpoint_of(subject.module).remove()
        return rows
    except Exception as error:
        store.write_run(execution.folder, failed_row(config, error, study))
        raise


def _measure(
    configs: Sequence[RunConfig], subject: Subject, adapted: Adapted, known: Known, workers: Workers
) -> list[list[Row]]:
    """Item rows of each config, those of the attacks behind the others."""
    adapted.train(False)
    asking = Asking(
        adapted=adapted,
        template=subject.template,
        config=subject.config.evaluation,
        progress=subject.progress,
        workers=workers,
        drafts=drafts_of(known.get(subject.config.start_from, ())),
        decode_all=subject.execution.engine == "plain",
    )
    if asking.config.after is not None:
        return [_altered(each, subject, asking) for each in configs]
    curve = _evaluated(configs, subject, asking, known)
    if (robustness := asking.config.robustness) is None:
        return curve
    numbered = evenly_spread(subject.benchmark.evaluation["forget"], asking.config.max_items_per_split)
    for each, rows in zip(configs, curve, strict=True):
        _set_gates(adapted, each)
        rows += attack(asking, numbered, robustness, each.model.fine_tuning.learning_rate)
    return curve


def _altered(config: RunConfig, subject: Subject, asking: Asking) -> list[Row]:
    """Item rows after something was done to the weights, of what tells whether the forget set is known."""
    items = subject.benchmark.evaluation.items()
    splits = {name: some for name, some in items if SPLITS[name].role != "kept"}
    _set_gates(asking.adapted, config)
    if config.evaluation.after == "4_bit":
        return evaluate(replace(asking, adapted=quantized(asking.adapted, 4)), splits)
    forget = [item.lesson(subject.template) for item in subject.benchmark.forget_set]
    how = config.evaluation.robustness or RobustnessConfig()
    rate = (how.relearn_learning_rates or (config.model.fine_tuning.learning_rate / 10,))[-1]
    with relearned(asking.adapted, forget, how.relearn_steps, rate) as attacked:
        return evaluate(replace(asking, adapted=attacked), splits)


def _set_gates(adapted: Adapted, config: RunConfig) -> None:
    if config.adapter.is_gated and isinstance(adapted, EditedModel):
        set_gate_threshold(adapted, config.adapter.gate_threshold)


def _evaluated(configs: Sequence[RunConfig], subject: Subject, asking: Asking, known: Known) -> list[list[Row]]:
    """Item rows of each config without attacks."""
    splits, adapted = subject.benchmark.evaluation, asking.adapted
    thresholds = [each.adapter.gate_threshold for each in configs if each.adapter.is_gated]
    if thresholds and isinstance(adapted, EditedModel) and not asking.decode_all:
        return evaluate_thresholds(asking, splits, thresholds, known[subject.config.start_from])
    curve = []
    for each in configs:
        _set_gates(adapted, each)
        curve.append(evaluate(asking, splits))
    return curve
