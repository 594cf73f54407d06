"""What a run trained, as a folder that other tools load, ready to be loaded by them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft

from bench.config import RunConfig, run_config
from bench.exchange.card import Exported, Score, write_card
from bench.files import check_new_folder
from bench.models.prepare import REFERENCES
from bench.models.pretrained import load_pretrained, quiet_transformers
from bench.results import store
from bench.results.columns import SCORES, Row
from bench.results.storage import Location
from bench.runs.execution import Execution
from bench.runs.related import at_threshold, prerequisite
from bench.runs.subject import Subject
from bench.runs.training import TRAINING
from grun.errors import UserError
from grun.model.forward import Adapted
from grun.unlearned import save

BASE = "base"
"""Folder of a PEFT checkpoint's base, where that is on no hub."""


def export_run(results: Location, run_key: str, output: Path) -> Exported:
    """Write the module of a run, at the run's gate threshold, in safetensors and JSON alone.

    Raises UserError where there is no such run, it trained nothing, its module was not kept, or something else lies
    where it is to be.
    """
    check_new_folder("--output", output)
    row = store.read_run(results, run_key)
    if row is None:
        raise UserError("--run", f"{results} holds no finished run {run_key}; `grun-bench pareto` lists run keys")
    config = at_threshold(run_config(json.loads(row["config_json"])), row["gate_threshold"])
    if not config.adapter.trains:
        raise UserError("--run", f"{config.method} was not trained here; name the run of a method")
    subject = Subject(config=config, execution=Execution(results=results, device="cpu"))
    if not (subject.module / TRAINING).exists():
        raise UserError("--run", f"what {run_key} trained was not kept (a sweep keeps what is small); train it again")
    commits = json.loads(row["hub_commits"] or "{}")
    made = _write(config, subject.loaded(subject.module), subject, output, commits)
    scores = list(_scores(row, config, results))
    write_card(output, subject, made, row, f"{len(subject.benchmark.forget_set)} items", scores)
    return made


def _write(config: RunConfig, adapted: Adapted, subject: Subject, output: Path, commits: Mapping[str, str]) -> Exported:
    """Models and modules, each with what it takes to ask it. commits: of what the run read from the hub."""
    output.mkdir(parents=True, exist_ok=True)
    subject.tokenizer.save_pretrained(output)
    if config.model.prompt is not None:
        config.model.prompt.save(output)
    trained: Any = adapted
    with quiet_transformers():
        if config.adapter.trains_in_place:
            trained.model.save_pretrained(output)
            return Exported(kind="whole", base=None)
        if not isinstance(trained.model, peft.PeftModel):
            subject.model.save_pretrained(output)
            save(adapted, config.adapter, None, output)
            return Exported(kind="module", base=None)
        settings = trained.model.peft_config["default"]
        base = settings.base_model_name_or_path
        if Path(base).is_dir():
            model, tokenizer = load_pretrained(base, "cpu", prompt=config.model.prompt)
            model.save_pretrained(output / BASE)
            tokenizer.save_pretrained(output / BASE)
            settings.base_model_name_or_path = str((output / BASE).absolute())
            base = f"{output.name}/{BASE}"
        settings.revision = commits.get(base)
        trained.model.save_pretrained(output)
        return Exported(kind="update", base=base, revision=settings.revision)


def _scores(row: Row, config: RunConfig, results: Location) -> Iterator[Score]:
    """The benchmark's headlines, where the run has them."""
    known = [store.read_run(results, prerequisite(config, role).run_key) or {} for role in reversed(REFERENCES)]
    for metric in config.benchmark.headlines:
        if row[metric] is not None:
            yield Score(metric, SCORES[metric].heading, [each.get(metric) for each in (row, *known)])
