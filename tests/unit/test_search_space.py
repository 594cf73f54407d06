"""Search spaces: conditionals, splitting, initial points, and the files shipped."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FixedTrial

from bench.files import read_yaml
from bench.sequential.studies import read_sequential
from bench.spaces.search_space import SweepConfig, read_studies
from grun.errors import UserError

SPACES = Path(__file__).parents[2] / "search_spaces"
SEQUENTIAL = sorted(SPACES.glob("sequential_*.yaml"))
SHIPPED = sorted(set(SPACES.glob("*.yaml")) - set(SEQUENTIAL))
SPACE: dict[str, Any] = {
    "study": "s",
    "base": {"adapter": "grun"},
    "search_space": {
        "forget_loss": {"type": "categorical", "choices": ["grad_ascent", "npo"]},
        "forget_loss.beta": {"type": "float", "low": 0.1, "high": 0.5, "when": {"forget_loss": "npo"}},
        "adapter.layers": {"type": "categorical", "choices": [[0.5, 1.0], [2, 3]]},
        "adapter.rank": {"type": "int", "low": 1, "high": 8, "log": True},
    },
}


def _read(tmp_path: Path, data: Any, overrides: Any = None) -> list[SweepConfig]:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(data))
    return read_studies(str(file), overrides or {}, None)


def test_conditional_parameters_are_only_drawn_where_they_apply(tmp_path: Path) -> None:
    (study,) = _read(tmp_path, SPACE)
    drawn = study.sample(FixedTrial({"forget_loss": '"grad_ascent"', "adapter.layers": "[2, 3]", "adapter.rank": 4}))
    assert drawn == {"forget_loss": "grad_ascent", "adapter.layers": [2, 3], "adapter.rank": 4}
    parameters = {"forget_loss": '"npo"', "adapter.layers": "[0.5, 1.0]", "adapter.rank": 4}
    drawn = study.sample(FixedTrial({**parameters, "forget_loss.beta if forget_loss=npo": 0.2}))
    run = study.run(drawn)
    assert (run.forget_loss.name, run.forget_loss.beta) == ("npo", 0.2)  # type: ignore[union-attr]
    assert run.adapter.layers == (0.5, 1.0)  # type: ignore[union-attr]


def test_conditions_also_look_at_the_base(tmp_path: Path) -> None:
    searched = {key: each for key, each in SPACE["search_space"].items() if key != "forget_loss"}
    space = {**SPACE, "base": {"forget_loss": "npo"}, "search_space": searched}
    (study,) = _read(tmp_path, space)
    trial = optuna.create_study().ask()
    assert "forget_loss.beta" in study.sample(trial)


LORA_RANK = {"type": "int", "low": 1, "high": 8, "when": {"adapter": "lora"}}
ADAPTERS = {"type": "categorical", "choices": ["grun", "lora"]}


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_keys_says_nothing(tmp_path: Path, order: int) -> None:
    """What is searched above `adapter:` is trained with, and a condition may look at a key below it."""
    rate = {"type": "float", "low": 0.001, "high": 0.1}
    space = {"adapter": ADAPTERS, "adapter.r": LORA_RANK, "adapter.learning_rate": rate}
    (study,) = _read(tmp_path, {"study": "s", "search_space": dict(list(space.items())[::order])})
    fixed = {"adapter": '"lora"', "adapter.r if adapter=lora": 7, "adapter.learning_rate": 0.05}
    adapter = study.run(study.sample(FixedTrial(fixed))).adapter
    assert (adapter.name, adapter.r, adapter.learning_rate) == ("lora", 7, 0.05)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"adapter": "reft", "seed": "x"}}, "base: seed: must be a valid integer"),
        ({"initial_points": [{"adapter.rank": 0}]}, "initial_points: adapter.rank: must be greater"),
        # A setting of one adapter searched beside the adapter itself.
        ({"search_space": {**SPACE["search_space"], "adapter": ADAPTERS}}, "search_space: adapter.layers: unknown key"),
        (
            {"search_space": {"adapter": ADAPTERS, "adapter.gate_weight": {**LORA_RANK, "when": {"seed": 0}}}},
            "search_space: adapter.gate_weight: unknown key",
        ),
        (
            {"search_space": {"adapter": ADAPTERS, "adapter.r": {**LORA_RANK, "when": {"adapter": ["lora", "grun"]}}}},
            "search_space: adapter.r: unknown key",
        ),
    ],
)
def test_a_slip_names_the_file_and_is_found_before_anything_is_drawn(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        _read(tmp_path, {**SPACE, "base": {}, **changes})
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}: {message}")


def test_what_is_wrong_with_an_option_does_not_blame_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^training\.num_epochs: must be"):
        _read(tmp_path, {**SPACE, "base": {}}, {"training.num_epochs": 0})


def test_one_study_per_value(tmp_path: Path) -> None:
    space = yaml.safe_load(yaml.safe_dump(SPACE)) | {"one_study_per": "adapter.rank"}
    with pytest.raises(UserError, match=r"one_study_per: adapter\.rank is not a categorical key"):
        _read(tmp_path, space)
    space["search_space"]["adapter.gate_function"] = {"type": "categorical", "choices": ["linear", "mlp_3"]}
    space |= {
        "one_study_per": "adapter.gate_function",
        "initial_points": [{"adapter.rank": 4}, {"adapter.gate_function": "mlp_3", "adapter.rank": 2}],
    }
    linear, mlp = _read(tmp_path, space)
    assert (linear.study, mlp.study) == ("s/linear", "s/mlp_3")
    assert mlp.run({}).adapter.gate_function == "mlp_3"  # type: ignore[union-attr]
    assert linear.initial_parameters() == [{"adapter.rank": 4}]
    assert mlp.initial_parameters() == [{"adapter.rank": 4}, {"adapter.rank": 2}]


def test_overrides_reach_every_study(tmp_path: Path) -> None:
    (study,) = _read(tmp_path, SPACE, {"benchmark.num_authors": 7, "seed": 3})
    run = study.run({"adapter.rank": 2})
    assert (run.benchmark.num_authors, run.seed) == (7, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("adapter", ["grun", "lora"])
def test_a_setting_holds_beside_every_choice(tmp_path: Path, adapter: str) -> None:
    """The file searches `adapter`, and the command line says how fast both learn."""
    (study,) = _read(tmp_path, {"study": "s", "search_space": {"adapter": ADAPTERS}}, {"adapter.learning_rate": 0.5})
    run = study.run(study.sample(FixedTrial({"adapter": json.dumps(adapter), "adapter.learning_rate": "0.5"})))
    assert (run.adapter.name, run.adapter.learning_rate) == (adapter, 0.5)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"^adapter\.r: unknown key"):  # grun has none
        _read(tmp_path, {"study": "s", "search_space": {"adapter": ADAPTERS}}, {"adapter.r": 8})


def test_what_the_command_line_says_is_not_searched(tmp_path: Path) -> None:
    """The file's own range, list, condition and initial point give way to it; what is left is searched as before."""
    points = [{"forget_loss": "npo", "forget_loss.beta": 0.3, "adapter.rank": 2}]
    given = {"forget_loss.beta": 0.2, "adapter.layers": [1, 2], "adapter.rank": 5}
    (study,) = _read(tmp_path, {**SPACE, "initial_points": points}, given)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn.enqueue_trial(study.initial_parameters()[0])
    runs = [study.run(study.sample(drawn.ask())) for _ in range(8)]
    assert {run.adapter.rank for run in runs} == {5}  # type: ignore[union-attr]
    assert {run.adapter.layers for run in runs} == {(1, 2)}  # type: ignore[union-attr]
    betas = {(run.forget_loss.name, getattr(run.forget_loss, "beta", None)) for run in runs}
    assert betas == {("npo", 0.2), ("grad_ascent", None)}
    assert runs[0].forget_loss.name == "npo"
    named = {**SPACE, "one_study_per": "forget_loss"}
    for key in ("forget_loss", "forget_loss.name"):
        assert [study.study for study in _read(tmp_path, named, {key: "npo"})] == ["s/npo"]


def test_a_point_of_another_choice_is_not_made_one_of_the_chosen(tmp_path: Path) -> None:
    """Two losses, each with a point of its own: of a study of npo alone the first is npo's own, whatever rank is given;
    where no point is of the chosen loss, all are tried with it."""
    points = [{"forget_loss": "grad_ascent", "adapter.rank": 2}, {"forget_loss": "npo", "adapter.rank": 4}]
    for rank, given in ((4, {}), (6, {"adapter.rank": 6})):
        (study,) = _read(tmp_path, {**SPACE, "initial_points": points}, {"forget_loss": "npo", **given})
        assert study.initial_points == [{"forget_loss": "npo", "adapter.rank": rank}]
    (study,) = _read(tmp_path, {**SPACE, "initial_points": points}, {"adapter.rank": 4})
    assert [point["forget_loss"] for point in study.initial_points] == ["grad_ascent", "npo"], "a number is no choice"
    (study,) = _read(tmp_path, {**SPACE, "initial_points": points}, {"forget_loss": "idk"})
    assert [point["adapter.rank"] for point in study.initial_points] == [2, 4]


@pytest.mark.parametrize("file", SEQUENTIAL, ids=lambda file: file.stem)
def test_shipped_sequences_are_valid(file: Path, tofu_dir: str) -> None:
    overrides = {"benchmark.data_dir": tofu_dir} if "name: tofu" in file.read_text() else {}
    study = read_sequential(str(file), overrides, None)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        study.run(study.sample(drawn.ask()))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_spaces_sample_valid_runs(file: Path) -> None:
    """Every shipped file loads, and twenty random draws of each of its studies are valid runs, all different."""
    for study in read_studies(str(file), {}, None):
        optuna_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        runs = {study.run(study.sample(optuna_study.ask())).run_key for _ in range(20)}
        assert len(runs) > 10
        for parameters in study.initial_parameters():
            optuna_study.enqueue_trial(parameters)
            trial = optuna_study.ask()
            study.run(study.sample(trial))
            assert parameters.items() <= trial.params.items(), "Optuna took the initial point"


def test_shipped_studies_have_names_of_their_own() -> None:
    names = [study.study for file in SHIPPED for study in read_studies(str(file), {}, None)]
    names += [read_yaml(file)["study"] for file in SEQUENTIAL]
    assert len(set(names)) == len(names)
    assert json.dumps(names)


@pytest.mark.parametrize(
    "file", [file for file in SHIPPED if file.stem.startswith("tofu_")], ids=lambda file: file.stem
)
def test_gold_is_of_the_split_that_is_forgotten(file: Path) -> None:
    """It follows: retain99, 95 or 90; another one named is refused, wherever it lies, as it would be no measure."""
    name = "open-unlearning/tofu_Llama-3.2-1B-Instruct_"
    for split, kept in {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}.items():
        for study in read_studies(str(file), {"benchmark.forget_split": split}, None):
            assert study.run({}).model.retain_model == name + kept  # type: ignore[union-attr]
            assert study.run({"model.name": f"{name}full@v1"}).model.retain_model == name + kept  # type: ignore[union-attr]
    for wrong in (f"{name}retain90", "/models/tofu_retain90"):
        with pytest.raises(UserError, match=r"retain_model: .*_retain90 was trained on retain90, and forget05 leaves"):
            read_studies(str(file), {"benchmark.forget_split": "forget05", "model.retain_model": wrong}, None)
    gold = "/retain90/of/mine/tofu_retain95"
    assert read_studies(str(file), {"benchmark.forget_split": "forget05", "model.retain_model": gold}, None)
    assert read_studies(str(file), {"benchmark.forget_split": "forget05", "model": "tiny"}, None)
