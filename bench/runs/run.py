"""One run, and before it what it is measured with. `train` and every trial of a sweep call the same function."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from bench.config import RunConfig
from bench.models.external import check_models
from bench.models.prepare import StartFrom
from bench.models.pretrained import empty_model
from bench.progress import Progress, quiet
from bench.results import store
from bench.results.doubt import doubt
from bench.runs.execution import Execution
from bench.runs.related import at_thresholds, prerequisites
from bench.runs.rows import Row, failed_row
from bench.runs.worker import Known, prepare_subject, work
from bench.sources import say
from grun.lm.kv_cache import check_attention
from grun.lm.reading import hidden_layer_index

logger = logging.getLogger(__name__)


def run(
    config: RunConfig,
    execution: Execution,
    *,
    gate_thresholds: Sequence[float] = (),
    study: str | None = None,
    progress: Progress = quiet,
) -> list[Row]:
    """Train (or load what an earlier run trained), evaluate, write; returns the rows of `runs`.

    The first row is that of `config`; a GRUN run has a further one for each other of `gate_thresholds`, all from
    one trained module. What is in the results already is not computed again, and what the run is measured with is
    made before it where it is not there. Raises UserError, before anything is done, where `execution` cannot do it.
    """
    execution.check(config)
    configs = at_thresholds(config, gate_thresholds)
    found = {each.run_key: store.read_run(execution.folder, each.run_key) for each in configs}
    missing = [each for each in configs if found[each.run_key] is None]
    if missing:
        store.create(execution.folder)
        known = _known(config, execution, progress)
        found |= {row["run_key"]: row for row in _run_now(missing, execution, known, study, progress)}
    return [row for row in found.values() if row is not None]


def run_prerequisites(config: RunConfig, execution: Execution, progress: Progress = quiet) -> list[Row]:
    """Rows of what a run is measured with, the retain model first; only what is not there is made.

    Nothing of it is unlearned: how they are made and asked need not be how the run itself can be done.
    """
    _check(config, execution)
    return [run(each, execution, progress=progress)[0] for each in prerequisites(config)]


def check_size(config: RunConfig) -> None:
    """Raises UserError where the model is smaller than what adapter or loss ask of it. No weights are read."""
    if config.adapter.name != "none":
        model, looked_at = empty_model(config.model), config.forget_loss.hidden_layer
        check_attention(model)
        if config.adapter.trains and looked_at is not None:
            hidden_layer_index(model, looked_at)
        # Somebody's own adapter may read weights, and torch says there are none.
        with suppress(RuntimeError, TypeError):
            config.adapter.attach(model, config.seed)


def _check(config: RunConfig, execution: Execution) -> None:
    """Before hours are spent on what the run is measured with, where that is not there yet."""
    if any(store.read_run(execution.folder, each.run_key) is None for each in prerequisites(config)):
        check_models(config.model, config.external)
        check_size(config)


def _known(config: RunConfig, execution: Execution, progress: Progress) -> Known:
    """What the run is measured with: its items, made anew where their file is damaged."""
    _check(config, execution)
    known: dict[StartFrom, list[Row]] = {}
    rows: dict[StartFrom, Row] = {}
    for each in prerequisites(config):
        (rows[each.start_from],) = run(each, execution, progress=progress)
        items = store.read_items(execution.folder, each.run_key)
        if items is None:
            logger.warning("the items of the %s are damaged; evaluating it again", each.method)
            _run_now([each], execution, known, None, progress)
            items = store.read_items(execution.folder, each.run_key)
        assert items is not None, "they were written just now"
        known[each.start_from] = items
    if "target_model" in rows and (line := doubt(rows["target_model"], rows.get("retain_model"))):
        say(line)
    return known


def _run_now(
    configs: Sequence[RunConfig], execution: Execution, known: Known, study: str | None, progress: Progress
) -> list[Row]:
    """The run's rows, by as many workers as are asked for."""
    part = partial(work, configs, known=known, study=study)
    if not execution.uses_ray_train:
        return part(execution=execution, progress=progress)
    from bench.cluster.together import WorkersDied, together  # Ray, and seconds of imports

    try:
        rows: list[Row] = together(part, execution, progress)
        return rows
    except WorkersDied as error:
        store.write_run(execution.folder, failed_row(configs[0], error, study))
        raise


def prepare(config: RunConfig, execution: Execution, progress: Progress) -> None:
    """The model that a run starts from, made by as many workers as are asked for where it never was."""
    if not execution.uses_ray_train:
        prepare_subject(config, execution, progress=progress)
        return
    from bench.cluster.together import together

    together(partial(prepare_subject, config), execution, progress)
