"""RunConfig: everything that decides a run's result, and nothing that does not. Validated once, here."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from bench.benchmarks import BenchmarkConfig, HubBenchmark, LocalBenchmark
from bench.benchmarks.authors import AuthorsConfig
from bench.benchmarks.keeping import questions_file
from bench.benchmarks.tofu import TofuConfig
from bench.content import DIGEST, by_content, digest, file_digest, files_digest, local_model, model_digest
from bench.evaluation.asking import EvaluationConfig
from bench.models.external import ExternalConfig
from bench.models.known import with_known_prompt, with_known_retain_model
from bench.models.prepare import StartFrom
from bench.models.pretrained import PretrainedConfig, TinyConfig
from bench.validation import validated
from grun.adapters import ADAPTERS, AdapterConfig
from grun.adapters.grun import GrunConfig
from grun.errors import UserError
from grun.forget_losses import FORGET_LOSSES, ForgetLossConfig
from grun.forget_losses.grad_ascent import GradAscentConfig
from grun.gates.openings import check_gates
from grun.retain_losses import RETAIN_LOSSES, RetainLossConfig
from grun.retain_losses.ce import CeConfig
from grun.settings import LATER, plain_data
from grun.training.recipe import Recipe, TrainingConfig

COMPONENTS = (ADAPTERS, FORGET_LOSSES, RETAIN_LOSSES)
"""What may also come from outside this repository."""
OF_LOSSES = {"forget_loss", "retain_loss", "training"}
"""Fields of RunConfig that say how an adapter is trained by losses."""


def _named(field_name: str) -> BeforeValidator:
    """`adapter: lora` stands for `adapter: {name: lora}`, and a missing name for the default one."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping):
            return {"name": DEFAULT_CHOICE[field_name], **value}
        return value

    return BeforeValidator(expand)


def _model_kind(value: Any) -> str:
    name = value.get("name") if isinstance(value, Mapping) else value.name
    return "tiny" if name == "tiny" else "pretrained"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a benchmark, a model, an adapter, a forget loss, and how they are trained and evaluated."""

    benchmark: Annotated[BenchmarkConfig, Field(discriminator="name"), _named("benchmark")] = AuthorsConfig()
    """What is to be forgotten and kept."""
    model: Annotated[
        Annotated[TinyConfig, Tag("tiny")]
        | Annotated[PretrainedConfig, BeforeValidator(with_known_prompt), Tag("pretrained")],
        Discriminator(_model_kind),
        _named("model"),
    ] = field(default_factory=TinyConfig)
    """Which model learns and forgets it."""
    start_from: StartFrom = "target_model"
    """Which of the two prepared models the adapter is put on."""
    adapter: Annotated[AdapterConfig, Field(discriminator="name"), _named("adapter")] = GrunConfig()
    """What is trained."""
    forget_loss: Annotated[ForgetLossConfig, Field(discriminator="name"), _named("forget_loss")] = GradAscentConfig()
    """How the forget set is forgotten."""
    retain_loss: Annotated[RetainLossConfig, Field(discriminator="name"), _named("retain_loss")] = CeConfig()
    """How the retain set is kept."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The training loop."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""
    external: ExternalConfig | None = field(default=None, metadata=LATER)
    """A model unlearned elsewhere, evaluated in place of the target model; `adapter` is `none` then."""
    seed: int = 0
    """Seed of the adapter's initial values, of the order of the items and of the refusals."""

    @property
    def method(self) -> str:
        """`adapter+forget_loss`; the adapter alone where no loss trains it; the model's own role where nothing does.

        An adapter whose edits go on to the answer's end is another method than one that edits the prompt's: `_latched`.
        """
        if not self.adapter.trains:
            return self.external.method if self.external else self.start_from
        adapter = f"{self.adapter.name}_latched" if self.adapter.edits == "answer" else self.adapter.name
        if not self.adapter.has_loss:
            return adapter
        name = f"{adapter}+{self.forget_loss.name}"
        return name if self.retain_loss.name == "ce" else f"{name}+{self.retain_loss.name}"

    @property
    def recipe(self) -> Recipe:
        """How its adapter is trained."""
        adapter = self.adapter
        return Recipe(
            forget_loss=self.forget_loss,
            retain_loss=self.retain_loss,
            training=self.training.resolved(self.forget_loss, adapter, self.model.fine_tuning.learning_rate),
            learning_rate=adapter.learning_rate,
            gate_weight=adapter.gate_weight if adapter.is_gated else 0.0,
            gate_warmup_steps=adapter.gate_warmup_steps if adapter.is_gated else 0,
            max_false_openings=adapter.max_false_openings if adapter.is_gated else None,
            seed=self.seed,
        )

    @property
    def run_key(self) -> str:
        """Hash of the whole config, with what local data and models hold in place of their paths: names its rows."""
        return digest(by_content(self.to_dict()))

    @property
    def train_key(self) -> str:
        """Hash of what training depends on: runs that differ in gate threshold or evaluation share a module."""
        config = by_content(self.to_dict())
        del config["evaluation"]
        config["benchmark"].pop("holdout", None)
        config["adapter"].pop("gate_threshold", None)
        return digest(config)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `run_config` reads it back. A retain loss without settings is its name alone.

        What was added later is left out at its default (`grun.settings.LATER`), so that keys and rows of before stay.
        """
        data: dict[str, Any] = plain_data(self)
        for kinds in COMPONENTS:
            data[kinds.field]["name"] = kinds.name_of(getattr(self, kinds.field))
        if not self.adapter.has_loss:  # what decides nothing names nothing
            return {key: value for key, value in data.items() if key not in OF_LOSSES}
        if data["retain_loss"].keys() == {"name"}:
            data["retain_loss"] = data["retain_loss"]["name"]
        return data

    def to_json(self) -> str:
        """Canonical JSON of `to_dict`."""
        return json.dumps(self.to_dict(), sort_keys=True)


DEFAULT_CHOICE = {
    key: getattr(RunConfig(), key).name for key in ("benchmark", "model", *(kinds.field for kinds in COMPONENTS))
}
"""Fields of RunConfig that hold one of several configs, told apart by their `name`, and whose name may be left out."""


def run_config(data: Mapping[str, Any]) -> RunConfig:
    """Validate plain data, and look at what is local: paths become absolute, and what they hold becomes known.

    What is left out takes its default; what was known already stays. Raises UserError naming the first bad field.
    """
    config = stored_config(data)
    for section, name, path, found in _local_content(config):
        part = getattr(config, section)
        known = getattr(part, name + DIGEST) or found
        config = replace(config, **{section: replace(part, **{name: path, name + DIGEST: known})})
    return config


def check_content(config: RunConfig) -> None:
    """Raises UserError where what is read here is not what the config was made for: another file, or another node's."""
    for section, name, path, found in _local_content(config):
        if found != getattr(getattr(config, section), name + DIGEST):
            field = f"{section}.{name}"
            what = f"{path} holds something else than this run is named by"
            raise UserError(field, f"{what}; put that back, or give {field} anew for what is there")


def _local_content(config: RunConfig) -> Iterator[tuple[str, str, str, str | None]]:
    """(section, field, absolute path, digest of what lies there) of all that a run reads from this machine."""
    benchmark, model = config.benchmark, config.model
    if isinstance(benchmark, LocalBenchmark) and benchmark.data_dir is not None:
        yield "benchmark", "data_dir", benchmark.data_dir, files_digest(Path(benchmark.data_dir), benchmark.parts)
    if config.external is not None and (place := local_model(config.external.model)):
        yield "external", "model", str(place), model_digest(place)
    for section, part, name in (("adapter", config.adapter, "keep_prompts"), ("model", model, "replay_prompts")):
        if path := getattr(part, name, None):
            yield section, name, path, file_digest(questions_file(path), f"{section}.{name}")
    if isinstance(model, PretrainedConfig):
        for name, given in (("name", model.name), ("retain_model", model.retain_model)):
            if given and (place := local_model(given)):
                yield "model", name, str(place), model_digest(place)


def stored_config(data: Mapping[str, Any]) -> RunConfig:
    """Plain data as a config, without a look at what its paths lead to. Raises UserError like `run_config`."""
    outside = _from_outside(data)
    config = validated(RunConfig, {key: value for key, value in data.items() if key not in outside})
    config = replace(config, model=with_known_retain_model(config.model, config.benchmark), **outside)
    _check_pairs(config)
    _check_benchmark(config)
    return replace(config, training=config.recipe.training)


def _from_outside(data: Mapping[str, Any]) -> dict[str, Any]:
    """Those components of a run that are not our own."""
    found: dict[str, Any] = {}
    for kinds in COMPONENTS:
        given = data.get(kinds.field)
        settings = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
        kind = kinds.named(str(settings.pop("name", "")))
        if kind is not None and kind not in kinds.own:
            found[kinds.field] = validated(kind, settings, spelled=f"{kinds.field}.{{}}".format)
    return found


def _check_pairs(config: RunConfig) -> None:
    forget_loss, retain_loss = config.forget_loss, config.retain_loss
    if not config.adapter.has_loss and (forget_loss != GradAscentConfig() or retain_loss != CeConfig()):
        name = "retain_loss" if forget_loss == GradAscentConfig() else "forget_loss"
        raise UserError(name, f"{config.adapter.name} is trained by no loss; leave it out")
    if retain_loss.reference == "hidden" and forget_loss.hidden_layer is None:
        raise UserError(
            "retain_loss",
            f"{retain_loss.name} keeps the layer that forget_loss steers, and {forget_loss.name} steers none; "
            "use ce or kl beside it",
        )
    if config.external is not None and config.adapter.trains:
        raise UserError("external", f"is what another tool trained, and {config.adapter.name} trains; use adapter none")
    named = config.external is not None and config.external.tool is None and config.external.method
    if named in get_args(StartFrom):
        raise UserError("external.method", f"{named} is what it is compared with; use another name")
    if (
        "logits" in (forget_loss.reference, retain_loss.reference)
        and config.adapter.trains_in_place
        and config.adapter.train_embeddings
    ):
        raise UserError(
            "adapter.train_embeddings",
            f"{forget_loss.name} with {retain_loss.name} needs the LM head as it was; leave it frozen",
        )
    if config.training.against_relearning is not None and (config.adapter.edits is None or not config.adapter.trains):
        what = f"{config.adapter.name} is no edit of a frozen model, which an attacker could copy; leave it out"
        raise UserError("training.against_relearning", what)
    for part, loss in (("forget_loss", forget_loss), ("retain_loss", retain_loss)):
        if loss.positions == "all" and (config.adapter.edits is not None or config.adapter.is_gated):
            what = f"{config.adapter.name} changes nothing that is said of a prompt; use answer"
            raise UserError(f"{part}.positions", what)
    check_gates(config.adapter)


def _check_benchmark(config: RunConfig) -> None:
    benchmark = config.benchmark
    if config.evaluation.robustness is not None and "forget" not in benchmark.splits:
        raise UserError("evaluation.robustness", f"{benchmark.name} asks nothing of its forget set; leave it out")
    if isinstance(benchmark, HubBenchmark) and benchmark.revision and benchmark.data_dir:
        raise UserError("benchmark.revision", "is one of the hub, and benchmark.data_dir is read; leave one out")
    if isinstance(benchmark, TofuConfig) and isinstance(config.model, PretrainedConfig):
        benchmark.check_retain_model(config.model.retain_model)


def overlay(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with dotted keys set, e.g. `adapter.rank`; the base is left alone.

    Choosing another `adapter` (or benchmark, model, forget_loss) by name drops the settings of the one before.
    The order of the overrides says nothing: what holds others comes first (`adapter` before `adapter.rank`).
    Of another path it is not known what it holds.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key in DEFAULT_CHOICE:
        if isinstance(result.get(key), str):
            result[key] = {"name": result[key]}
    for dotted, value in sorted(overrides.items(), key=_holders_first):
        *holders, last = dotted.split(".")
        if _is_name(dotted, value):
            head = dotted.removesuffix(".name")
            chosen = result.get(head, {})
            same = isinstance(chosen, Mapping) and chosen.get("name", DEFAULT_CHOICE[head]) == value
            result[head] = {**(chosen if same else {}), "name": value}
            continue
        node = result
        for holder in holders:
            held = node.get(holder)
            node[holder] = dict(held) if isinstance(held, Mapping) else {}
            node = node[holder]
        node[last] = value
        node.pop(last + DIGEST, None)
    return result


def _is_name(dotted: str, value: Any) -> bool:
    """Whether an override chooses among several configs: `adapter: lora`, or `adapter.name: lora`."""
    head, *rest = dotted.split(".")
    return head in DEFAULT_CHOICE and (rest == ["name"] or (not rest and isinstance(value, str)))


def _holders_first(override: tuple[str, Any]) -> tuple[int, bool]:
    """Sorts what holds others before what it holds; a choice by name, after the whole of what it chooses from."""
    dotted, value = override
    return (0, True) if _is_name(dotted, value) else (dotted.count("."), False)
