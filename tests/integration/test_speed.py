"""`grun-bench benchmark`: rivals compute what GRUN computes, the bound is counted right, every section is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.models.pretrained import load_pretrained
from bench.progress import quiet
from bench.results import store
from bench.runs import subject
from bench.runs.execution import Execution
from bench.speed import Effort, latched
from bench.speed.contenders import EDITED, FINE_TUNED, best_ratio, edited
from bench.speed.report import merged, read_records, write_records
from bench.speed.scaling import __main__ as scaling
from bench.speed.stopwatch import Stopwatch
from grun.data import Example
from grun.engine.prefix_cache import PrefixCaching

EXAMPLES = [Example(prompt_ids=(3, 4, 5)[: 1 + i % 3], answer_ids=(6, 7, 1)[i % 2 :]) for i in range(6)]


@pytest.mark.parametrize("edits", ["prompt_end", "answer"])
def test_the_three_ways_to_run_grun_agree(edits: str, small_config: RunConfig, tmp_path: Path) -> None:
    config = run_config(overlay(small_config.to_dict(), {"adapter.edits": edits}))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_SHAPE)).eval()
    caching = PrefixCaching(root=tmp_path, max_bytes=10**9, log=print)
    outputs = []
    for name in EDITED:
        adapted = edited(name, config, model, (1, 3), "npo", caching)
        adapted.announce(EXAMPLES, generate=False, progress=lambda done, total: None)
        outputs.append(adapted.answer_output(EXAMPLES))
    for output in outputs[1:]:
        torch.testing.assert_close(output.logits_NV, outputs[0].logits_NV, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.gate_logit_BK, outputs[0].gate_logit_BK, rtol=1e-4, atol=1e-5)


_SHAPE = {
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}


def test_best_ratio_by_hand() -> None:
    """A layer has 4·8·8 + 3·8·16 = 640 weights, the head 8·64 = 512; the first of 4 layers edited is layer 1.

    Whole model: 4·640 + 512 = 3072; above the edit: 2·640 + 512 = 1792. Items: 3 prompt and 2 answer tokens, so 4 are
    read and 2 follow from the edit. GD: 8·(3072 + 1792) / (2·4·1792). NPO reads 4 tokens more: + 4·3072.
    """
    model = LlamaForCausalLM(LlamaConfig(**_SHAPE))
    items = [Example(prompt_ids=(1, 2, 3), answer_ids=(4, 5))]
    hooks, engine = 8 * (3072 + 1792), 2 * 4 * 1792
    gd = best_ratio(model, items, items, first_layer=1, reads_reference=False)
    npo = best_ratio(model, items, items, first_layer=1, reads_reference=True)
    assert gd == pytest.approx(hooks / engine)
    assert npo == pytest.approx((hooks + 4 * 3072) / engine)


def test_benchmark_command(small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One short round of everything, for three requests in place of a hundred; another model's figures in the same file
    stay."""
    for name, few in {"NUM_REQUESTS": 3, "KEPT": 20, "PREFILL_REPEATS": 1}.items():
        monkeypatch.setattr(latched, name, few)
    output = tmp_path / "benchmarks.md"
    write_yaml(tmp_path / "run.yaml", small_config.to_dict())
    command = ["benchmark", str(tmp_path / "run.yaml"), "--output", str(output), "--rounds", "1", "--steps", "1"]
    command += ["--evaluation.max-items-per-split", "4", "--training.num-epochs", "2"]
    main([*command, "--num-trials", "1"])
    records = json.loads(output.with_suffix(".json").read_text())
    tiny = records["tiny"]
    assert set(tiny) == {
        *(
            "machine",
            "config",
            "effort",
            "steps",
            "cache",
            "evaluation",
            "fine_tuned",
            "latched",
            "memory",
            "sweep",
            "measured",
        ),
    }
    assert [(row["forget_loss"], row["layers"]) for row in tiny["steps"]] == [
        (loss, layers) for loss in ("grad_ascent", "npo") for layers in ("at 60, 80, 100 % depth", "the last three")
    ]
    for row in tiny["steps"]:
        measured = ("pyvene", "hooks", "engine", "lora", "lora_padded", "full", "full_padded")
        assert all(row[name]["median"] > 0 for name in measured)
    assert all(0 < each["before_gb"] <= each["peak_gb"] for each in tiny["memory"].values())
    assert tiny["evaluation"]["items"] == 20
    for found in tiny["fine_tuned"].values():
        assert found["as_naive"] == found["items"] == 20
    edits = tiny["latched"]
    assert [row["forget_loss"] for row in edits["steps"]] == ["grad_ascent", "npo"]
    assert all(row[name]["median"] > 0 for row in edits["steps"] for name in ("hooks", "engine"))
    assert all(each["median"] > 0 for each in edits["token"].values())
    asked = [(row["prompts"], row["gates"]) for row in edits["requests"]["prefill"]]
    assert asked == [(32, "shut"), (1, "shut"), (32, "open"), (1, "open")]
    text = output.read_text()
    assert "### A sweep of 1 GRUN trials" in text
    assert "on 1 thread, as many as a sweep gives a trial" in text
    output.with_suffix(".json").write_text(json.dumps({"other": tiny}))
    with pytest.raises(SystemExit):
        main([*command, "--adapter", "lora"])
    assert json.loads(output.with_suffix(".json").read_text()) == {"other": tiny}
    write_records(output, {**read_records(output.with_suffix(".json")), "tiny": tiny})
    assert "## other" in output.read_text()
    assert "## tiny" in output.read_text()


def test_only_grun_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["benchmark", "--output", str(tmp_path / "b.md"), "--adapter", "lora"])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("grun-bench: adapter")


def test_a_sweep_of_no_trials_alone_is_nothing_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["benchmark", "--output", str(tmp_path / "b.md"), "--only", "sweep", "--num-trials", "0"])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("grun-bench: --num-trials")


def test_scaling_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two tables that need no cluster."""
    scaling.main(["ask", "10", "--results", str(tmp_path / "ask")])
    scaling.main(["rows", "40", "--results", str(tmp_path / "rows")])
    cells = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in cells if row[0] == "10"] == [["10", "40"]], "four rows a training"
    assert [row[1] for row in cells if row[0] in ("write", "compact", "read all, compacted")] == ["40"] * 3
    assert store.scan_runs(tmp_path / "rows" / "alone").height == 40


def test_a_no_op_goes_through_the_sweep(without_ray: None, tmp_path: Path) -> None:
    """Each training's four rows once, with their items, and what they are measured against beside them."""
    scaling.main(["no_op_sweep", "3", "--results", str(tmp_path)])
    rows = store.scan_runs(tmp_path)
    trained = rows.filter(adapter="grun")
    assert trained["train_key"].n_unique() == 3
    assert trained.height == trained["run_key"].n_unique() == 12
    assert sorted(rows.filter(adapter="none")["method"].to_list()) == ["retain_model", "target_model"]
    assert store.scan_items(tmp_path, trained["run_key"].to_list()).height == 12 * 440


def test_each_model_is_opened_in_the_dtype_its_run_uses(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRUN's and LoRA's weights stay frozen, bfloat16 on a GPU; full fine-tuning's are trained, float32 everywhere."""
    asked: list[bool] = []

    def load(name: str, device: Any, **options: Any) -> Any:
        asked.append(options["trained_in_place"])
        return load_pretrained(name, device, **options)

    monkeypatch.setattr(subject, "load_pretrained", load)
    effort = Effort(rounds=1, steps=1, num_trials=0)
    watch = Stopwatch(small_config, Execution(results=tmp_path), effort, tmp_path, quiet)
    assert asked == [False], "the model that GRUN's edits are timed on"
    for name in FINE_TUNED:
        watch.contender(name, "npo", ())
    assert dict(zip(FINE_TUNED, asked[1:], strict=True)) == {"lora": False, "full": True}


def test_sections_that_are_measured_again_stand_beside_the_others(tmp_path: Path) -> None:
    """Two of three are kept, one is new and says at which commit; what is then measured whole says it once."""

    def at(commit: str) -> dict[str, Any]:
        machine = {"device": "cpu", "num_threads": 2, "git_sha": commit}
        config = {"benchmark": {"name": "tofu", "forget_split": "forget01"}, "training": {"batch_size": 16}}
        return {"machine": machine, "effort": {"rounds": 5, "steps": 5}, "config": config}

    def record(commit: str, build_s: float, *sections: str) -> dict[str, Any]:
        cache = {"build_s_per_item": build_s, "naive_epoch_s_per_item": 1, "mb_per_item": 1, "second_open_s": 1}
        every = {"cache": cache, "memory": {"full": {"before_gb": build_s, "peak_gb": build_s}}}
        own = {section: every[section] for section in sections}
        return {**at(commit), **own, "measured": {section: at(commit) for section in sections}}

    old = record("a" * 40, 0.001, "cache", "memory")
    both = merged(old, record("b" * 40, 0.002, "cache"))
    assert both["memory"] == old["memory"]
    write_records(tmp_path / "b.md", {"tiny": both})
    text = (tmp_path / "b.md").read_text()
    assert text.count("commit aaaaaaaaaaaa") == text.count("commit bbbbbbbbbbbb") == 1
    assert text.index("commit bbbb") > text.index("### The prefix cache")
    assert "| 2.0 | 0.00 |" in text
    assert "| peak | 0.00 |" in text
    assert read_records(tmp_path / "b.json") == {"tiny": both}
    write_records(tmp_path / "b.md", {"tiny": merged({}, old)})
    assert "Measured anew" not in (tmp_path / "b.md").read_text()
