"""What `export` writes of a run: other tools load it, and it answers as the run's own module."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.run import run
from bench.runs.subject import Subject
from grun.errors import UserError
from grun.unlearned import load

SAFE = {".safetensors", ".json", ".md", ".jinja"}
"""What a folder may hold: no pickle (.bin, .pt, .pkl), and no code (.py)."""


def _made(config: RunConfig, results: Path, *thresholds: float, **settings: Any) -> tuple[RunConfig, dict[str, Any]]:
    """A run of a few epochs, and its row, or that of the same module at another gate threshold."""
    chosen = run_config(overlay(config.to_dict(), {"training.num_epochs": 5, **settings}))
    rows = run(chosen, Execution(results=results), gate_thresholds=thresholds)
    return chosen, rows[-1]


def _export(results: Path, run_key: str, output: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Its card, as the hub reads it, and what the card's Python leaves behind, run where the folder lies."""
    main(["export", str(results), "--run", run_key, "--output", str(output)])
    assert {file.suffix for file in output.rglob("*") if file.is_file()} <= SAFE
    card = ModelCard.load(output / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    left: dict[str, Any] = {}
    exec(code, left)
    return card, left


def _logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("Question: Where was Birgit Karlsen born?\nAnswer:", return_tensors="pt")).logits


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_weights_give_the_runs_logits(
    adapter: str,
    small_config: RunConfig,
    small_results: Path,
    target_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`transformers`, and PEFT on the base beside it, bit for bit; and not those of the model as it was."""
    monkeypatch.chdir(tmp_path)
    config, row = _made(small_config, small_results, adapter=adapter, **{"adapter.learning_rate": 1e-2})
    card, left = _export(small_results, row["run_key"], tmp_path / "out")
    subject = Subject(config=config, execution=Execution(results=small_results))
    own: Any = subject.loaded(subject.module)
    logits = _logits(left["model"].eval(), left["tokenizer"])
    assert torch.equal(logits, _logits(own.model, subject.tokenizer))
    assert not torch.equal(logits, _logits(AutoModelForCausalLM.from_pretrained(target_folder), subject.tokenizer))
    assert card.data.library_name == {"lora": "peft", "full": "transformers"}[adapter]
    assert (tmp_path / "out" / "adapter_config.json").exists() == (adapter == "lora")


@pytest.mark.parametrize("adapter", ["grun", "reft", "gated_lora", "eco"])
def test_a_module_answers_as_its_run(
    adapter: str,
    small_config: RunConfig,
    small_results: Path,
    target_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run's stored answers word for word, at the row's own threshold; `transformers` loads the base, untouched.

    The folder may be moved: what is said of it names no place.
    """
    monkeypatch.chdir(tmp_path)
    faster = {"adapter.learning_rate": 0.02} if adapter == "gated_lora" else {}
    _, row = _made(small_config, small_results, 0.3, adapter=adapter, **faster)
    _export(small_results, row["run_key"], tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "out")
    (target,) = store.scan_runs(small_results).filter(method="target_model").to_dicts()
    before, items = (store.read_items(small_results, each["run_key"]) for each in (target, row))
    assert items is not None
    assert before is not None
    assert [item["generation"] for item in items] != [item["generation"] for item in before]
    asked = [item for item in items if item["split"] in ("forget", "retain")]
    answers = load(tmp_path / "out").generate([item["question"] for item in asked])
    assert answers == [item["generation"] for item in asked]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert torch.equal(
        _logits(base, tokenizer), _logits(AutoModelForCausalLM.from_pretrained(target_folder), tokenizer)
    )
    if adapter == "grun":
        assert json.loads((tmp_path / "out" / "adapter.json").read_text())["adapter"]["gate_threshold"] == 0.3
        external = {"adapter": "none", "external": {"method": "theirs", "model": str(tmp_path / "out")}}
        with pytest.raises(UserError, match="holds a module of this package, and would be measured without it"):
            run(run_config(overlay(small_config.to_dict(), external)), Execution(results=small_results))


def test_the_card_says_what_it_is(
    small_config: RunConfig, small_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Front matter with the run's scores; the run key, and the set that was forgotten, but none of its items.

    What cannot be exported is one line.
    """
    monkeypatch.chdir(tmp_path)
    _, row = _made(small_config, small_results, adapter="lora")
    card, _ = _export(small_results, row["run_key"], tmp_path / "out")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert found["model_utility"] == pytest.approx(row["model_utility"])
    assert found["log10_forget_quality"] == pytest.approx(row["log10_forget_quality"])
    assert f"`{row['run_key']}`" in card.text
    assert "10 items of authors (forget20), by lora+grad_ascent" in card.text
    assert f"| {row['model_utility']:.3f} |" in card.text
    assert not any(item.question in card.text for item in small_config.benchmark.load().forget_set)
    target = store.scan_runs(small_results).filter(method="target_model")["run_key"][0]
    for words, problem in (
        (["--run", row["run_key"]], "--output: "),
        (["--run", "none", "--output", "new"], "--run: "),
        (["--run", target, "--output", "new"], "--run: target_model was not trained here"),
        (["--output", "new"], "--run: or --study says what to export"),
        (["--run", row["run_key"], "--output", "new", "--without", "003"], "--without: "),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["export", str(small_results), "--output", str(tmp_path / "out"), *words])
        (line,) = capsys.readouterr().err.splitlines()
        assert (stop.value.code, line.startswith(f"grun-bench: {problem}")) == (2, True), line
