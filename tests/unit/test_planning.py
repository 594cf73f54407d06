"""What plans are made with: tensors that hold nothing, memory by its parts, made-up texts; and what users get wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bench.benchmarks.tofu import TofuConfig
from bench.benchmarks.wmdp import WmdpConfig
from bench.cli.main import main
from bench.config import run_config
from bench.planning import Cluster
from bench.planning.facts import BENCHMARKS, GPUS, MODELS, model_config
from bench.planning.fake.memory import Spent, spending
from bench.planning.fake.tensors import rehearsing
from bench.planning.fake.texts import Words, benchmark_of
from bench.planning.fit import USABLE, problem
from bench.planning.hours import Work
from bench.planning.measured import Measured, reached, read_rates
from bench.runs.execution import Execution
from bench.spaces.search_space import read_studies
from grun.errors import UserError

PAPER = Path(__file__).parents[2] / "search_spaces" / "paper"


def test_what_is_counted_stays_known_and_nothing_else() -> None:
    """Lengths 1 and 3 of 3 columns make 4 tokens, so that many rows are read off; a number that is not known is a
    stand-in."""
    with rehearsing():
        is_token_BL = torch.arange(3) < torch.tensor([1, 3])[:, None]
        hidden_BLD = torch.randn(2, 3, 5, requires_grad=True)
        read_ND = hidden_BLD[is_token_BL]
        read_ND.sum().backward()
        assert is_token_BL.tolist() == [[True, False, False], [True, True, True]]
        assert (read_ND.shape, hidden_BLD.grad is not None) == ((4, 5), True)
        assert (read_ND.mean().item(), read_ND.argmax(dim=-1).tolist()) == (1.0, [0, 0, 0, 0])
        assert bool(torch.isfinite(read_ND.sum()))
    assert torch.arange(2).tolist() == [0, 1], "real again"
    assert nn.Linear(2, 2).double().weight.dtype == torch.float64


@pytest.mark.parametrize(("on_gpu", "kept"), [(True, 1000), (False, 4000)])
def test_dropout_keeps_what_the_device_keeps(on_gpu: bool, kept: int) -> None:
    """On a GPU a byte an element, on a CPU a float: LoRA was planned to take 9 GB more of an H100 than it did."""
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[id(tensor)] = tensor.nbytes
        return tensor

    layer = nn.Dropout(0.1)
    with rehearsing(on_gpu=on_gpu), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        input_N = torch.randn(1000, requires_grad=True)
        layer(2 * input_N).sum().backward()
        assert input_N.grad is not None
    assert sum(saved.values()) == kept


def test_a_module_that_holds_nothing_is_copied_and_cast() -> None:
    with rehearsing():
        layer = nn.Linear(4, 4).to(torch.bfloat16)
        copied = copy.deepcopy(layer)
    assert layer.weight.dtype == copied.weight.dtype == torch.bfloat16
    assert copied.weight is not layer.weight
    assert isinstance(copied.weight, nn.Parameter)


@pytest.mark.parametrize("is_fake", [True, False])
def test_memory_and_products_of_two_steps_by_hand(is_fake: bool) -> None:
    """A layer of 256 x 128 floats is 131,072 bytes, its gradient as many, AdamW's two moments twice that; its step's
    scratch is counted with them: at most two more of each. 8 rows forward and back to the weight, not to the input:
    2 x 2 x 8 x 256 x 128 FLOP a step."""
    size = 256 * 128 * 4

    def steps() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            layer(torch.ones(8, 256)).sum().backward()
            optimizer.step()

    with rehearsing() if is_fake else torch.enable_grad():
        layer = nn.Linear(256, 128, bias=False)
        optimizer = torch.optim.AdamW(layer.parameters())
        with spending([layer]) as spent:
            steps()
    assert spent.flop == 2 * 2 * 2 * 8 * 256 * 128
    assert (spent.peak["weights"], spent.peak["gradients"]) == (size, size)
    assert 2 * size <= spent.peak["optimiser"] <= 4.1 * size
    assert spent.total == sum(spent.peak.values())


@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_a_benchmark_of_the_hub_is_made_up_as_long_as_it_is(split: str) -> None:
    """TOFU's own numbers of items, and the mean and the longest of its answers."""
    config = TofuConfig(forget_split=split)  # type: ignore[arg-type]
    benchmark, is_made_up = benchmark_of(config)
    num_forget = {"forget01": 40, "forget05": 200, "forget10": 400}[split]
    assert (is_made_up, len(benchmark.forget_set), len(benchmark.retain_set)) == (True, num_forget, 4000 - num_forget)
    assert {name: len(items) for name, items in benchmark.evaluation.items()} == {
        "forget": num_forget,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
        "holdout": num_forget,
    }
    tokenizer = Words(vocab_size=1000, bos_token_id=None, eos_token_id=1)
    lengths = [len(tokenizer(item.answer).input_ids) for item in benchmark.retain_set]
    assert max(lengths) == 94
    assert mean(lengths) == pytest.approx(34.6, rel=0.02)


def test_wmdp_has_its_published_rows() -> None:
    benchmark, _ = benchmark_of(WmdpConfig(forget_split="bio_cyber", num_passages=300))
    assert (len(benchmark.forget_set), len(benchmark.retain_set)) == (600, 300)
    rows = {name: facts["rows"] for name, facts in BENCHMARKS["wmdp"].items() if name in benchmark.evaluation}
    assert {name: len(items) for name, items in benchmark.evaluation.items()} == rows
    assert rows["wmdp_bio"] + rows["wmdp_chem"] + rows["wmdp_cyber"] == 3668


def test_words_of_any_length_and_vocabulary() -> None:
    """`unlearning` is two tokens of at most eight letters, `?` one; BOS stands before a text where one is known."""
    tokenizer = Words(vocab_size=50, bos_token_id=7, eos_token_id=1)
    ids = tokenizer("What is unlearning?").input_ids
    assert (ids[0], len(ids), max(ids) < 50) == (7, 6, True)
    assert len(tokenizer("What", add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
    ],
)
def test_the_shipped_facts_are_those_of_the_models(model: str, parameters: int) -> None:
    """The published number of parameters comes out of the shapes."""
    from transformers import AutoModelForCausalLM

    from bench.models.pretrained import PretrainedConfig

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(model_config(PretrainedConfig(name=model)))
    assert sum(weight.numel() for weight in made.parameters()) == parameters
    assert set(MODELS) >= {model, "meta-llama/Llama-3.1-8B-Instruct"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["paper/tofu_grun_llama", "--gpu", "h10"], f"--gpu: h10 is not known; use one of {', '.join(GPUS)}"),
        (["paper/tofu_grun_lama"], "did you mean"),
        (["paper/tofu_grun_llama", "--num-gpus", "0"], "--num-gpus"),
        (["paper/tofu_grun_llama", "--mfu", "1.5"], "--mfu"),
        (["paper/tofu_lora_llama", "--shard", "--num-workers", "2"], "--shard: splits weights that are trained"),
        (["paper/tofu_grun_llama", "--model", "/none"], "/none is not a folder"),
        (["paper/tofu_grun_llama", "--measure", "--num-workers", "2"], "--measure: times one worker"),
        (["paper/tofu_grun_llama", "--rates", str(PAPER / "tofu_grun_llama.yaml")], "is not what `plan --measure"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert said in error


@pytest.mark.parametrize(
    ("items", "rates", "count"), [(2, None, 2), (2, [1e-4], 1), (2, [1e-3, 1e-4, 1e-5], 3), (0, None, 0)]
)
def test_each_rate_of_relearning_is_counted(items: int, rates: list[float] | None, count: int) -> None:
    """3 steps on 2 items of 5 tokens, 6 FLOP a token and weight, 7 weights: 1,260 a rate, two where none is set."""
    robustness = {"relearn_items": items, "relearn_steps": 3, "relearn_learning_rates": rates}
    work: Any = SimpleNamespace(
        config=run_config({"evaluation": {"robustness": robustness}}),
        amounts=SimpleNamespace(forget_item_tokens=5.0),
        rehearsed=SimpleNamespace(model_parameters=7),
    )
    assert Work._relearning(work) == count * 1260


@pytest.mark.parametrize(
    ("adapter", "held", "mended"),
    [
        ("grun", 100, "make its models first: `grun-bench prepare` with --shard --num-workers 3, or name models"),
        ("full", 100, "use --shard --num-workers 3, or name models that were taught it"),
        ("grun", 20, "use --accumulation-steps 2, or --gradient-checkpointing"),
    ],
)
def test_what_mends_teaching(adapter: str, held: int, mended: str) -> None:
    """Of 50 GB at hand: 100 held and 40 worked with are three parts of 46.7, and GRUN's own command cannot be sharded;
    20 and 40 are one passing in two of 20."""
    spent = Spent(peak={"weights": held * 10**9, "activations": 40 * 10**9})
    config = run_config({"adapter": adapter, "model": {"name": "tiny", "fine_tuning": {"batch_size": 4}}})
    work: Any = SimpleNamespace(config=config, execution=Execution(results="none"), rehearsed=None)
    work.machine = SimpleNamespace(memory_gb=50 / USABLE)
    work.rehearsed = SimpleNamespace(phases={"teach": SimpleNamespace(spent=spent)})
    line = problem(work)
    assert line is not None
    assert line.startswith(f"teach takes {held + 40:.1f} GB of the 50.0 that a GPU has for it; {mended}")


def test_rates_of_a_record(tmp_path: Path) -> None:
    """By adapter, latched edits included; one that was not measured, another GPU, or a record without any, is one
    line."""
    found = {"device": "H100", "step_ms": 1.0, "step_tokens": 2, "peak_gb": 3.0, "mfu": 0.4, "decode_ms": None}
    file = tmp_path / "gpu.json"
    studies = [{"method": "grun_latched+npo", "measured": found}, {"method": "full+npo", "measured": None}]
    file.write_text(json.dumps({"gpu": "h100-80gb", "studies": studies}))
    rates = read_rates(file, "h100-80gb")
    assert rates == {"grun": Measured(**found)}
    with pytest.raises(UserError, match="is of h100-80gb, and --gpu is a100-80gb"):
        read_rates(file, "a100-80gb")
    (grun,) = read_studies(str(PAPER / "wmdp_grun_llama.yaml"), {}, None)
    assert reached(Cluster(), grun, rates) == Cluster(mfu=0.4), "what was not measured is assumed"
    (rmu,) = read_studies(str(PAPER / "wmdp_rmu_llama.yaml"), {}, None)
    with pytest.raises(UserError, match="full; measure that, too"):
        reached(Cluster(), rmu, rates)
    file.write_text(json.dumps({"gpu": "h100-80gb", "studies": studies[1:]}))
    with pytest.raises(UserError, match="nothing was measured"):
        read_rates(file, "h100-80gb")


def test_a_plan_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the tiny model, in each part of a run: a file of one's own, the last of three trials counted.

    Run here, too, it takes time and memory, and its seconds follow from what was measured.
    """
    space = {
        "study": "mine",
        "base": {
            "benchmark": {"name": "authors", "num_authors": 5},
            "model": {"name": "tiny", "num_layers": 3, "hidden_size": 16, "vocab_size": 300},
            "training": {"batch_size": 2},
            "evaluation": {"batch_size": 2},
        },
        "search_space": {"adapter.learning_rate": {"type": "float", "low": 0.001, "high": 0.01}},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(space))
    main(
        [
            "plan",
            str(tmp_path / "mine.yaml"),
            "--format",
            "json",
            "--num-trials",
            "3",
            "--price",
            "2",
            "--num-gpus",
            "4",
            "--measure",
            "--device",
            "cpu",
        ]
    )
    record = json.loads(capsys.readouterr().out)
    (study,) = record["studies"]
    assert list(study["peak_gb"]) == ["teach", "prefix", "train", "score", "decode"]
    assert (study["method"], study["problem"], study["made_up_texts"]) == ("grun+grad_ascent", None, False)
    assert record["gpu_hours"] == pytest.approx(study["once_gpu_hours"] + 3 * study["trial_gpu_hours"])
    assert (record["cost"], record["hours"]) == pytest.approx((2 * record["gpu_hours"], record["gpu_hours"] / 4))
    found, spent = study["measured"], study["trial_gpu_seconds"]
    assert (found["device"], study["mfu"], study["decode_ms"]) == ("cpu", found["mfu"], found["decode_ms"])
    assert min(found["step_ms"], found["decode_ms"], found["peak_gb"]) > 0
    assert spent["decode"] == pytest.approx(study["decoding_steps"] * found["decode_ms"] / 1000)
    assert spent["train"] == pytest.approx(study["pflop"]["train"] * 1e15 / (found["mfu"] * 989e12))
