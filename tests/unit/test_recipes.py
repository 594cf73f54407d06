"""The recipes of search_spaces/paper have the figures that GRUN's authors published, one training a published run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench.config import RunConfig, overlay
from bench.results.settings import check_one_setting
from bench.spaces.search_space import read_studies
from grun.errors import UserError
from grun.lm.layers import layer_index, layer_indices

PAPER = Path(__file__).parents[2] / "search_spaces" / "paper"
MODELS = {"llama": "meta-llama/Llama-3.1-8B", "mistral": "mistralai/Mistral-7B-v0.1"}
EPOCHS = {"llama": 5, "mistral": 8}
FORGET_WEIGHTS = {"grun": {"npo": 100.0}, "lora": {"npo": 0.1375}, "full": {"npo": 0.1375}}
NUM_LAYERS = 32


def _runs(name: str) -> list[RunConfig]:
    """Every training that the file asks for."""
    runs = []
    for study in read_studies(str(PAPER / f"{name}.yaml"), {}, None):
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for point in study.initial_parameters():
            drawn.enqueue_trial(point)
        runs += [study.run(study.sample(drawn.ask())) for _ in range(study.num_trials)]
    return runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("adapter", ["grun", "lora", "full"])
def test_tofu(adapter: str, model: str) -> None:
    """Each loss once, GRUN's with either gate."""
    runs = _runs(f"tofu_{adapter}_{model}")
    gates = [("linear", "mlp_3")] if adapter == "grun" else [("",)]
    assert len(runs) == 3 * len(gates[0]) == len({run.run_key for run in runs})
    for run in runs:
        own: Any = run.adapter
        loss, teaching, training = run.forget_loss, run.model.fine_tuning, run.training
        assert (run.benchmark.forget_split, run.model.name) == ("forget05", MODELS[model])
        assert (teaching.num_epochs, teaching.batch_size) == (EPOCHS[model], 32)
        assert (teaching.learning_rate, teaching.weight_decay) == (1e-5, 0.01)
        assert training.forget_weight == FORGET_WEIGHTS[adapter].get(loss.name, 1.0)
        assert training.retain_weight == (2.0 if (adapter, loss.name) == ("grun", "grad_ascent") else 1.0)
        assert loss.name != "npo" or loss.beta == 0.1  # type: ignore[union-attr]
        assert run.evaluation.robustness is not None
        assert (run.evaluation.robustness.quantize, run.evaluation.robustness.relearn_items) == (True, 0)
        if adapter == "grun":
            assert layer_indices(own.layers, NUM_LAYERS) == (20, 25, 31)
            assert (own.rank, own.learning_rate, own.gate_weight, own.edits) == (4, 4e-3, 10.0, "prompt_end")
            assert (training.num_epochs, training.batch_size, training.weight_decay) == (40, 16, 0.0)
        else:
            assert own.learning_rate == {"lora": 1e-4, "full": 1e-5}[adapter]
            assert (training.num_epochs, training.batch_size, training.weight_decay) == (10, 32, 0.01)
            assert training.warmup_fraction * training.num_epochs == pytest.approx(1.0)
        if adapter == "lora":
            assert (own.r, own.alpha, own.dropout) == (4, 32.0, 0.05)


@pytest.mark.parametrize(
    ("model", "steering", "alpha", "characters"), [("llama", 30, 350, 50), ("mistral", 27, 1600, 200)]
)
def test_wmdp(model: str, steering: float, alpha: float, characters: int) -> None:
    (rmu,), (grun,) = _runs(f"wmdp_rmu_{model}"), _runs(f"wmdp_grun_{model}")
    for run in (rmu, grun):
        assert (run.benchmark.forget_split, run.model.name) == ("bio_cyber", MODELS[model])
        assert run.retain_loss.name == "rmu_mse"
    configs = [rmu.to_dict(), grun.to_dict()]
    check_one_setting(map(json.dumps, configs))  # they read different passages, and are asked the same
    taught = [overlay(config, {"model.fine_tuning.num_epochs": 1}) for config in configs]
    with pytest.raises(UserError, match=r"which do not compare \(benchmark\."):
        check_one_setting(map(json.dumps, taught))
    ours: Any = rmu
    assert layer_indices(ours.adapter.layers, NUM_LAYERS) == (13, 14, 15)
    assert (ours.adapter.modules, ours.adapter.learning_rate) == (("mlp.down_proj",), 5e-5)
    assert layer_index(ours.forget_loss.layer, NUM_LAYERS, "") == 15
    assert (ours.forget_loss.steering_coefficient, ours.training.retain_weight) == (steering, alpha)
    assert ours.forget_loss.positions == ours.retain_loss.positions == "all"
    assert 2 * ours.benchmark.num_passages == 150 * ours.training.batch_size == 600
    assert (ours.benchmark.min_characters, ours.benchmark.cyber_tokens) == (characters, 768)
    assert (ours.training.schedule, ours.training.warmup_fraction) == ("constant", 0.0)
    assert ours.training.corpora_in_turn
    theirs: Any = grun
    assert layer_index(theirs.forget_loss.layer, NUM_LAYERS, "") == 30
    assert (theirs.forget_loss.steering_coefficient, theirs.training.retain_weight) == (300.0, 1.0)
    assert (theirs.adapter.gate_function, theirs.adapter.gate_weight, theirs.adapter.rank) == ("mlp_3", 100.0, 4)
    assert (theirs.training.num_epochs, theirs.training.batch_size) == (4, 16)
