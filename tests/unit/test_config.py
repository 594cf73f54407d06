"""RunConfig: overlays, keys, defaults."""

import json
from typing import Any

import pytest

from bench.config import overlay, run_config
from grun.errors import UserError


def test_default_config_survives_json() -> None:
    config = run_config({})
    assert run_config(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("overrides", "train_key_stays"),
    [
        ({"adapter.gate_threshold": 0.5}, True),
        ({"evaluation.max_new_tokens": 20}, True),
        ({"adapter.rank": 8}, False),
        ({"seed": 1}, False),
        ({"training.forget_weight": 0.5}, False),
        ({"benchmark.seed": 2}, False),
        ({"start_from": "retain_model"}, False),
    ],
)
def test_run_key_names_the_whole_config_and_train_key_the_module(overrides: Any, train_key_stays: bool) -> None:
    base, other = run_config({}), run_config(overlay({}, overrides))
    assert other.run_key != base.run_key
    assert (other.train_key == base.train_key) == train_key_stays


def test_run_key_is_stable() -> None:
    """A key that moves makes every result ever written look unfinished; change this only together with a default."""
    assert run_config({}).run_key == "da944f0825b76e70"


def test_retain_weight_defaults_to_the_papers() -> None:
    assert run_config({"forget_loss": "grad_ascent"}).training.retain_weight == 2.0
    assert run_config({"forget_loss": "npo"}).training.retain_weight == 1.0
    assert run_config({"forget_loss": "npo", "training": {"retain_weight": 3}}).training.retain_weight == 3.0


def test_overlay_by_name_drops_the_settings_of_another_choice() -> None:
    base = {"adapter": {"name": "grun", "gate_weight": 3.0}, "training": {"num_epochs": 7}}
    assert overlay(base, {"adapter": "lora", "adapter.r": 2})["adapter"] == {"name": "lora", "r": 2}
    assert overlay(base, {"adapter": "grun"})["adapter"] == base["adapter"]
    assert base["adapter"] == {"name": "grun", "gate_weight": 3.0}, "the base is left alone"


def test_partial_tiny_recipe_keeps_the_tiny_defaults() -> None:
    recipe = run_config({"model": {"fine_tuning": {"seed": 1}}}).model.fine_tuning
    assert (recipe.seed, recipe.num_epochs, recipe.learning_rate) == (1, 24, 3e-3)


def test_method_names() -> None:
    assert run_config({"adapter": "lora", "forget_loss": "npo"}).method == "lora+npo"
    assert run_config({"adapter": "none", "start_from": "retain_model"}).method == "retain_model"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"adapter": {"rnk": 1}}, "adapter.rnk: unknown key; did you mean rank?"),
        ({"sed": 1}, "sed: unknown key; did you mean seed?"),
        ({"adapter": {"rank": 0}}, "adapter.rank: must be greater than or equal to 1 (got 0)"),
        ({"adapter": "lorra"}, "adapter: must be one of 'full', 'grun', 'lora', 'none', 'reft'"),
        ({"benchmark": {"name": "tofu", "forget_split": "forget02"}}, "benchmark.forget_split: must be 'forget01'"),
        ({"model": {"name": "gpt2", "num_layers": 3}}, "model.num_layers: unknown key; known are name"),
        ({"training": {"num_epochs": "many"}}, "training.num_epochs: must be a valid integer"),
        ({"adapter": {"layers": []}}, "adapter.layers: must have at least 1 item"),
    ],
)
def test_errors_name_the_field_and_the_fix(data: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        run_config(data)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
