"""Evaluate a trained module again, or a model that was unlearned elsewhere."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from bench.cli.options import GATE_THRESHOLDS, ROBUSTNESS, WHERE_IT_RUNS, Options, settings
from bench.cli.parser import option, positive
from bench.cli.tables import console, number, print_rows, progress
from grun.errors import UserError

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.runs.execution import Execution

EXAMPLE = "grun-bench evaluate results/mine/modules/<train_key> --gate-thresholds 0.3 0.6"
ARGUMENTS = (
    option("module", metavar="MODULE", help="a folder under RESULTS/modules; with --name any model"),
    option("--name", metavar="METHOD", help="MODULE was unlearned elsewhere: a hub id, a folder, PEFT, GGUF"),
    option("--results", metavar="RESULTS", help="with --name: where its row goes (default: results/default)"),
    settings,
    GATE_THRESHOLDS,
    ROBUSTNESS,
    option("--lm-eval", nargs="+", metavar="TASK", help="also run these tasks of lm-evaluation-harness"),
    option("--lm-eval-include", type=Path, metavar="DIR", help="folder with further task files"),
    option("--lm-eval-limit", type=positive, metavar="N", help="only so many items a task"),
    WHERE_IT_RUNS,
)


def run(options: Options) -> None:
    config, execution = _elsewhere(options) if options.name else _own(options)
    from bench.runs.run import run

    with progress() as shown:
        rows = run(config, execution, gate_thresholds=options.gate_thresholds, progress=shown)
    print_rows(rows)
    if options.lm_eval:
        _lm_eval(options, config, execution)


def _own(options: Options) -> "tuple[RunConfig, Execution]":
    """The run that trained the module, and where it lies."""
    from bench.results.storage import location

    if options.results is not None:
        raise UserError("--results", "goes with --name; the row of a module is written where the module lies")
    module = location(options.module)
    execution = options.execution(module.parent.parent)
    from bench.config import overlay, run_config, stored_config
    from bench.files import read_yaml
    from bench.runs.training import TRAINING

    if not (module / TRAINING).exists():
        raise UserError("MODULE", f"{module} holds no trained module; give a folder under RESULTS/modules, or --name")
    with module.read_folder() as local:
        settings = overlay(read_yaml(local / "run.yaml"), options.settings)
    config = run_config(settings)
    if config.train_key != module.name:
        if stored_config(settings).train_key == module.name:
            raise UserError("MODULE", "was named by a path, so what it was trained on cannot be told; train it again")
        raise UserError("MODULE", "only evaluation keys and adapter.gate_threshold can change without training again")
    return config, execution


def _elsewhere(options: Options) -> "tuple[RunConfig, Execution]":
    """The run that only evaluates a model unlearned elsewhere."""
    execution = options.execution(options.results or "results/default")
    from bench.config import overlay, run_config

    external = {"adapter": "none", "external.method": options.name, "external.model": options.module}
    return run_config(overlay(options.setting(execution.folder), external)), execution


def _lm_eval(options: Options, config: "RunConfig", execution: "Execution") -> None:
    """lm-eval's tasks on the module, at the config's own gate threshold."""
    from bench.evaluation.harness import UnlearnedLM, run_lm_eval
    from bench.runs.subject import Subject

    subject = Subject(config=config, execution=execution)
    model = UnlearnedLM(
        subject.attached() if config.external else subject.loaded(subject.module),
        subject.tokenizer,
        max_length=subject.model.config.get_text_config().max_position_embeddings,
        batch_size=config.evaluation.batch_size,
    )
    found = run_lm_eval(model, options.lm_eval, include=options.lm_eval_include, limit=options.lm_eval_limit)
    file = execution.folder / "lm_eval" / f"{config.run_key}.json"
    file.write((json.dumps(found, indent=1) + "\n").encode())
    table = Table("task", "metric", "value")
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                table.add_row(task, name, number(value))
    console.print(table)
    console.print(f"every item is in {file}")
