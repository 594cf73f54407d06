"""What a run trained, as a folder that other tools load, with a model card that says what it is."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import peft

from bench.config import RunConfig, run_config
from bench.content import by_content, local_model
from bench.files import check_new_folder, yaml_text
from bench.hub.repositories import split_revision
from bench.models.prepare import StartFrom
from bench.models.pretrained import PretrainedConfig, load_pretrained, quiet_transformers
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
Kind = Literal["whole", "update", "module"]
REFERENCES: tuple[StartFrom, ...] = ("target_model", "retain_model")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What lies in the folder."""

    kind: Kind
    """A model as `transformers` loads it; a PEFT checkpoint; or such a model, untouched, and a module beside it."""
    base: str | None
    """What a PEFT checkpoint is to be put on: a name of the hub, or the folder beside it; None: of the others."""
    revision: str | None = None
    """The hub's commit of that."""


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
    (output / "README.md").write_text(_card(row, config, subject, made, output.name))
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


def _card(row: Row, config: RunConfig, subject: Subject, made: Exported, folder: str) -> str:
    """README.md as the hub reads it. It says which set was forgotten, and nothing of what is in it."""
    from huggingface_hub import EvalResult, ModelCardData

    scores = list(_scores(row, config, subject.execution.folder))
    name, benchmark = config.model.name, config.benchmark
    is_on_hub = isinstance(config.model, PretrainedConfig) and not local_model(name) and not name.endswith(".gguf")
    data = ModelCardData(
        model_name=folder,
        base_model=split_revision(name)[0] if is_on_hub and name != "smollm2" else None,
        library_name={"whole": "transformers", "update": "peft", "module": "grun-bench"}[made.kind],
        pipeline_tag="text-generation",
        tags=["unlearning", config.method],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=benchmark.name,
                dataset_name=f"{benchmark.name} {benchmark.forget_split}",
                metric_type=metric,
                metric_value=value,
            )
            for metric, _, (value, *_) in scores
        ],
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.exchange", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    prompt = subject.template.prompt_ids("{question}")
    return environment.get_template("card.md.j2").render(
        front_matter=data.to_yaml(),
        config=config,
        made=made,
        folder=folder,
        row=row,
        scores=scores,
        settings=yaml_text(by_content(config.to_dict())),
        num_forgotten=len(subject.benchmark.forget_set),
        prompt=subject.tokenizer.decode(prompt, skip_special_tokens=False),
    )


def _scores(row: Row, config: RunConfig, results: Location) -> Iterator[tuple[str, str, list[float | None]]]:
    """(column, heading, values) of the benchmark's headlines: the run's value, then the target's and retain model's."""
    known = [store.read_run(results, prerequisite(config, role).run_key) or {} for role in REFERENCES]
    for metric in config.benchmark.headlines:
        if row[metric] is not None:
            yield metric, SCORES[metric].heading, [each.get(metric) for each in (row, *known)]
