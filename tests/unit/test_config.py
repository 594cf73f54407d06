"""RunConfig: overlays, keys, defaults."""

import json
import math
import re
from typing import Any

import pytest

from bench.config import overlay, run_config
from grun import components
from grun.errors import UserError
from grun.lm.layers import layer_indices
from grun.prompts.config import PromptConfig


def test_default_config_survives_json() -> None:
    config = run_config({})
    assert run_config(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("overrides", "train_key_stays"),
    [
        ({"adapter.gate_threshold": 0.5}, True),
        ({"evaluation.max_new_tokens": 20}, True),
        ({"adapter.rank": 8}, False),
        ({"adapter.edits": "answer"}, False),
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
    """GRUN's for what GRUN ran (2 with gradient ascent), the loss's own elsewhere: GradDiff 1, SatImp 1 to 10, none for
    UNDIAL and CE-U. SimNPO on forget05: 0.1375 · forget + 1 · retain."""
    own = {"npo": 1.0, "grad_ascent": 1.0, "satimp": 0.1, "undial": 0.0, "ce_u": 0.0, "simnpo": 1 / 0.1375}
    for adapter, of_losses in (("lora", own), ("full", own), ("grun", own | {"grad_ascent": 2.0})):
        for loss, weight in of_losses.items():
            config = run_config({"adapter": adapter, "forget_loss": loss})
            assert config.training.retain_weight == weight, (adapter, loss)
            assert config.recipe.retain_weight == weight
    assert run_config({"forget_loss": "npo", "training": {"retain_weight": 3}}).training.retain_weight == 3.0


def test_a_loss_that_changed_has_a_key_of_its_own() -> None:
    """CE-U leaves first tokens out now: even at the same retain weight its rows are not those of before.

    What did not change has the keys of before.
    """
    keys = [
        run_config({"adapter": "lora", "forget_loss": loss, "training": {"retain_weight": 1.0}}).run_key
        for loss in ("ce_u", "npo", "grad_ascent", "simnpo")
    ]
    assert keys[0] != "1d6f8634e11a39c2"
    assert keys[1:] == ["10ec1060200a6eed", "ae77a383f5640742", "bddb5bca63aaa647"]


def test_kl_over_all_positions_is_for_weights_and_has_a_key_of_its_own() -> None:
    """An edit changes nothing that is said of a question; over answers the retain loss is its name alone, as before."""
    everywhere = {"name": "kl", "positions": "all"}
    with pytest.raises(UserError, match=r"^retain_loss\.positions: grun changes nothing"):
        run_config({"retain_loss": everywhere})
    configs = [run_config({"adapter": "lora", "retain_loss": loss}) for loss in ("kl", everywhere)]
    assert [config.to_dict()["retain_loss"] for config in configs] == ["kl", everywhere]
    assert run_config(json.loads(configs[1].to_json())) == configs[1]


def test_overlay_by_name_drops_the_settings_of_another_choice() -> None:
    base = {"adapter": {"name": "grun", "gate_weight": 3.0}, "training": {"num_epochs": 7}}
    assert overlay(base, {"adapter": "lora", "adapter.r": 2})["adapter"] == {"name": "lora", "r": 2}
    assert overlay(base, {"adapter": "grun"})["adapter"] == base["adapter"]
    assert base["adapter"] == {"name": "grun", "gate_weight": 3.0}, "the base is left alone"


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_overrides_says_nothing(order: int) -> None:
    """What holds others is set before what it holds: names, whole sections, and an optional section opened by `{}`."""
    for overrides, section, expected in (
        ({"adapter": "lora", "adapter.r": 16}, "adapter", {"name": "lora", "r": 16}),
        ({"adapter.name": "lora", "adapter.r": 16}, "adapter", {"name": "lora", "r": 16}),
        ({"adapter": {"name": "lora", "r": 2}, "adapter.r": 16}, "adapter", {"name": "lora", "r": 16}),
        ({"adapter": {"name": "lora", "r": 2}, "adapter.name": "reft"}, "adapter", {"name": "reft"}),
        ({"model": "gpt2", "model.retain_model": "./gold"}, "model", {"name": "gpt2", "retain_model": "./gold"}),
        ({"forget_loss": "npo", "forget_loss.beta": 0.5}, "forget_loss", {"name": "npo", "beta": 0.5}),
        ({"evaluation.robustness": {}, "evaluation.robustness.seed": 3}, "evaluation", {"robustness": {"seed": 3}}),
        ({"training": {"num_epochs": 2}, "training.seed": 3}, "training", {"num_epochs": 2, "seed": 3}),
    ):
        given = dict(list(overrides.items())[::order])
        before = json.dumps(given)
        assert overlay({"adapter": {"rank": 8}}, given)[section] == expected
        assert json.dumps(given) == before, "what is given is left alone"


def test_the_order_of_options_does_not_move_a_key() -> None:
    """`--adapter.learning_rate 0.01 --adapter.r 16 --adapter lora` trained r 4 at 1e-4."""
    overrides = {"adapter.learning_rate": 0.01, "adapter.r": 16, "adapter": "lora"}
    run = run_config(overlay({}, overrides))
    assert (run.adapter.learning_rate, run.adapter.r) == (0.01, 16)  # type: ignore[union-attr]
    assert run.run_key == run_config(overlay({}, dict(reversed(overrides.items())))).run_key


@pytest.mark.parametrize(
    ("given", "meant"), [([1.0], (1.0,)), ([1], (1,)), ([1, 0.5], (1, 0.5)), ([2, 1.0], (2, 1.0)), ([0, 3], (0, 3))]
)
def test_an_index_and_a_depth_are_never_read_as_the_other(given: Any, meant: tuple[int | float, ...]) -> None:
    """1 is the second layer, 1.0 the last one: (1, 1.0) of 6 layers are 1 and 5."""
    for adapter in ("grun", "reft", "full"):
        layers = run_config({"adapter": {"name": adapter, "layers": given}}).adapter.layers  # type: ignore[union-attr]
        assert layers == meant
        assert [type(layer) for layer in layers] == [type(layer) for layer in meant]
    steered = run_config({"forget_loss": {"name": "rmu", "layer": given[0]}}).forget_loss.layer  # type: ignore[union-attr]
    assert type(steered) is type(given[0])
    assert layer_indices((1, 1.0), 6) == (1, 5)


@pytest.mark.parametrize("benchmark", ["muse", "wmdp"])
def test_attacks_ask_for_a_forget_set(benchmark: str) -> None:
    """Said before anything is trained: it was said after the training."""
    with pytest.raises(UserError, match=rf"^evaluation\.robustness: {benchmark} asks nothing of its forget set"):
        run_config({"benchmark": benchmark, "evaluation": {"robustness": {}}})


@pytest.mark.parametrize("layer", [0.0, True, "1", "1.0", 1.5, -1, None])
def test_what_is_no_layer_is_refused(layer: Any) -> None:
    """0.0 and true used to be the layers 0 and 1."""
    for data in ({"adapter": {"layers": [layer]}}, {"forget_loss": {"name": "rmu", "layer": layer}}):
        with pytest.raises(UserError, match=r"^(adapter\.layers\.0|forget_loss\.layer): must be "):
            run_config(data)


@pytest.mark.parametrize(
    ("given", "meant"), [([3, 1, 2, 1], (1, 2, 3)), ([1.0, 0.5, 0.5], (0.5, 1.0)), ([1.0, 5, 1], (1, 5, 1.0))]
)
@pytest.mark.parametrize("adapter", ["grun", "reft", "full"])
def test_one_set_of_layers_is_one_setting(adapter: str, given: list[Any], meant: tuple[Any, ...]) -> None:
    """In whatever order, and twice or once: it trains the same, so it is one run, with one key."""
    config = run_config({"adapter": {"name": adapter, "layers": given}})
    assert config.adapter.layers == meant  # type: ignore[union-attr]
    assert [type(layer) for layer in config.adapter.layers] == [type(layer) for layer in meant]  # type: ignore[union-attr]
    assert config.run_key == run_config({"adapter": {"name": adapter, "layers": list(meant)}}).run_key


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", ["adapter.learning_rate", "training.retain_weight", "adapter.gate_weight"])
def test_what_is_no_finite_number_is_refused(field: str, value: float) -> None:
    """`.inf` in a file trained to nothing but NaN, under a key that is no JSON."""
    with pytest.raises(UserError, match=rf"^{re.escape(field)}: must be (a finite|greater than)"):
        run_config(overlay({}, {field: value}))


def test_partial_tiny_recipe_keeps_the_tiny_defaults() -> None:
    recipe = run_config({"model": {"fine_tuning": {"seed": 1}}}).model.fine_tuning
    assert (recipe.seed, recipe.num_epochs, recipe.learning_rate) == (1, 24, 3e-3)


def test_method_names() -> None:
    assert run_config({"adapter": "lora", "forget_loss": "npo"}).method == "lora+npo"
    latched = {"name": "grun", "edits": "answer"}
    assert run_config({"adapter": latched, "forget_loss": "npo"}).method == "grun_latched+npo"
    assert run_config({"adapter": "none", "start_from": "retain_model"}).method == "retain_model"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"adapter": {"rnk": 1}}, "adapter.rnk: unknown key; did you mean rank?"),
        ({"sed": 1}, "sed: unknown key; did you mean seed?"),
        ({"adapter": {"rank": 0}}, "adapter.rank: must be greater than or equal to 1 (got 0)"),
        ({"adapter": "lorra"}, "adapter: must be one of 'eco', 'full', 'gated_lora', 'grun', 'lora', 'none', 'reft'"),
        ({"benchmark": {"name": "tofu", "forget_split": "forget02"}}, "benchmark.forget_split: must be 'forget01'"),
        ({"model": {"name": "gpt2", "num_layers": 3}}, "model.num_layers: unknown key; known are name"),
        ({"training": {"num_epochs": "many"}}, "training.num_epochs: must be a valid integer"),
        (
            {"evaluation": {"robustness": {"relearn_step": 1}}},
            "evaluation.robustness.relearn_step: unknown key; did you mean relearn_steps?",
        ),
        ({"model": {"fine_tuning": {"epochs": 1}}}, "model.fine_tuning.epochs: unknown key; did you mean num_epochs?"),
        ({"model": {"prompt": {"date": "today"}}}, "model.prompt.date: must be like '10 Apr 2025' (got 'today')"),
        ({"model": {"prompt": {"systm": "x"}}}, "model.prompt.systm: unknown key; did you mean system?"),
        ({"model": {"prompt": {"max_tokens": 0}}}, "model.prompt.max_tokens: must be greater than or equal to 1"),
        ({"adapter": {"layers": []}}, "adapter.layers: must have at least 1 item, not 0 (got [])"),
        ({"adapter": {"layers": 3}}, "adapter.layers: must be a list (got 3)"),
        ({"training": 3}, "training: must be keys and their values (got 3)"),
    ],
)
def test_errors_name_the_field_and_the_fix(data: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        run_config(data)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_known_model_is_asked_as_it_was_taught_and_the_prompt_is_in_the_key() -> None:
    """open-unlearning's models have its system prompt and date; a setting of one's own lies over what is known."""
    taught = {"style": "chat", "system": "You are a helpful assistant.", "date": "10 Apr 2025"}
    name = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
    known = run_config({"model": name})
    assert taught.items() <= known.to_dict()["model"]["prompt"].items()
    assert run_config(json.loads(known.to_json())) == known
    other = run_config(overlay({"model": name}, {"model.prompt.date": "26 Jul 2024"}))
    assert other.model.prompt == PromptConfig(**{**taught, "date": "26 Jul 2024"})
    assert len({known.run_key, other.run_key, run_config({"model": "/tofu_Llama-3.2-1B-Instruct_full"}).run_key}) == 3
    assert run_config({"model": "mistralai/Mistral-7B-v0.1"}).model.prompt == PromptConfig(style="plain")
    assert run_config({"model": f"{name}@v1"}).model.prompt == known.model.prompt, "of whatever revision"
    for own in ("tiny", "smollm2"):
        assert "prompt" not in run_config({"model": own}).to_dict()["model"], "keys of before stay"


def test_each_setting_of_a_prompt_makes_a_key_of_its_own() -> None:
    prompts = [{"style": "plain"}, {"text": "{question} {answer}"}, {"system": "Be brief."}, {"turn_end": "</s>"}]
    prompts += [{"date": "10 Apr 2025"}, {"examples": [["Who?", "Ada"]]}, {"max_tokens": 9}]
    configs = [run_config({"model": {"name": "gpt2", "prompt": prompt}}) for prompt in (None, *prompts)]
    assert len({config.train_key for config in configs}) == len(configs)
    assert all(run_config(json.loads(config.to_json())) == config for config in configs)


def test_what_is_installed_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of the three kinds of components: it takes 10 ms, and a search space is tried at hundreds of points."""
    asked: list[Any] = []
    monkeypatch.setattr(components, "entry_points", lambda **words: asked.append(words) or ())
    components._offered.cache_clear()
    for _ in range(3):
        run_config({})
    components._offered.cache_clear()
    assert len(asked) == 3
