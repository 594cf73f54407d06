"""The model card of an exported folder: what was forgotten, how well, and the lines of Python that load it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2

from bench.content import by_content, local_model
from bench.files import yaml_text
from bench.hub.repositories import split_revision
from bench.models.pretrained import PretrainedConfig
from bench.results.columns import Row
from bench.runs.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What lies in the folder."""

    kind: Literal["whole", "update", "module"]
    """A model as `transformers` loads it; a PEFT checkpoint; or such a model, untouched, and a module beside it."""
    base: str | None
    """What a PEFT checkpoint is to be put on: a name of the hub, or the folder beside it; None: of the others."""
    revision: str | None = None
    """The hub's commit of that."""


class Score(NamedTuple):
    """A line of the card's table."""

    metric: str
    """Its column."""
    heading: str
    """What people call it."""
    values: Sequence[float | None]
    """What is exported has the first; the others are of the target and of the retain model, where they are known."""


def write_card(
    output: Path, subject: Subject, made: Exported, row: Row, forgotten: str, scores: Sequence[Score]
) -> None:
    """README.md as the hub reads it. It says which set was forgotten, and nothing of what is in it.

    row: of `runs` or `requests`. forgotten: how many items or requests. scores: none where they are not of what lies
    there.
    """
    from huggingface_hub import EvalResult, ModelCardData

    config, folder = subject.config, output.name
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
                metric_type=score.metric,
                metric_value=score.values[0],
            )
            for score in scores
        ],
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.exchange", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    prompt = subject.template.prompt_ids("{question}")
    text = environment.get_template("card.md.j2").render(
        front_matter=data.to_yaml(),
        config=config,
        model=Path(name).name if local_model(name) else name,  # nobody else has that folder
        made=made,
        folder=folder,
        row=row,
        scores=scores,
        settings=yaml_text(by_content(config.to_dict())),
        forgotten=forgotten,
        prompt=subject.tokenizer.decode(prompt, skip_special_tokens=False),
    )
    (output / "README.md").write_text(text)
