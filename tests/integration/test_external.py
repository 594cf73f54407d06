"""Models that were unlearned elsewhere stand beside our own, measured by the same target and retain model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.models.cache import cache_dir
from bench.reports.comparison import compare
from bench.results import store
from bench.results.columns import METRICS
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.errors import UserError
from grun.unlearned import load


def test_a_folder_scores_as_the_run_that_made_it(
    small_config: RunConfig, small_prerequisites: Path, tmp_path: Path
) -> None:
    """A LoRA run's model saved whole by `transformers`, and its update as a PEFT folder: each has that run's scores.

    It is a method of its own, on the fronts and in the tables, and nobody knows what it cost. The command need not be
    told what the folder's runs are of.
    """
    results = Path(shutil.copytree(small_prerequisites, tmp_path / "results"))
    execution = Execution(results=results)
    lora = run_config(overlay(small_config.to_dict(), {"adapter": "lora", "training.num_epochs": 2}))
    (own,) = run(lora, execution)
    unlearned = load(results / "modules" / own["train_key"])
    base = unlearned.adapted.model.peft_config["default"].base_model_name_or_path
    unlearned.adapted.model.save_pretrained(tmp_path / "update")
    unlearned.template.tokenizer.save_pretrained(tmp_path / "whole")
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "update").merge_and_unload()
    merged.save_pretrained(tmp_path / "whole")
    assert str(cache_dir()) in base
    for folder, name in ((tmp_path / "whole", "theirs"), (tmp_path / "update", "their lora")):
        main(["evaluate", str(folder), "--name", name, "--results", str(results)])
    rows = {row["method"]: row for row in store.scan_runs(results).to_dicts() if row["adapter"] == "external"}
    assert set(rows) == {"theirs", "their lora"}
    for row in rows.values():
        assert [row[name] for name in METRICS] == pytest.approx([own[name] for name in METRICS], abs=1e-5)
        assert (row["trainable_parameters"], row["train_seconds"], row["forget_loss"]) == (None, None, None)
    methods = {summary.method: summary for summary in compare(results).methods}
    assert methods["theirs"].hypervolume == pytest.approx(methods[own["method"]].hypervolume)


def test_what_is_missing_is_one_line(
    small_config: RunConfig,
    small_prerequisites: Path,
    target_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No tokenizer; another vocabulary; an update whose base is gone, or without its own weights; an empty folder; the
    name of a reference; an adapter on top; --results without a name."""
    execution, target = Execution(results=small_prerequisites), Path(target_folder)

    def problem(name: str, **files: str | None) -> str:
        """Of a copy of a prepared model with other files in it; None: without that file."""
        folder = Path(shutil.copytree(target, tmp_path / name))
        for file, content in files.items():
            path = folder / f"{file}.json"
            path.unlink() if content is None else path.write_text(content)
        external = {"adapter": "none", "external": {"method": name, "model": str(folder)}}
        with pytest.raises(UserError) as error:
            run(run_config(overlay(small_config.to_dict(), external)), execution)
        assert "\n" not in str(error.value)
        return str(error.value)

    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {f"{token}!": at for token, at in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["merges"] = []
    bare: dict[str, str | None] = {"tokenizer": None, "tokenizer_config": None}
    assert "has weights and no tokenizer" in problem("no-tokenizer", **bare)
    assert "has another vocabulary than the target model" in problem("vocabulary", tokenizer=json.dumps(tokenizer))
    lora = {"base_model_name_or_path": "/nowhere/base", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    for own in ({}, bare):
        name = f"no-base-{len(own)}"
        said = problem(name, adapter_config=json.dumps(lora), **own)
        assert f"external.model: '{tmp_path / name}', an update of '/nowhere/base', cannot be read (there is no" in said
    on_target = json.dumps(lora | {"base_model_name_or_path": str(target)})
    assert "adapter_model.safetensors)" in problem("no-update", adapter_config=on_target)
    assert "cannot be read (" in problem("nothing", config=None, **bare)
    with pytest.raises(SystemExit):
        main(["evaluate", str(target), "--results", str(tmp_path)])
    assert "grun-bench: --results: goes with --name" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"external\.method: retain_model is what it is compared with"):
        run_config({"adapter": "none", "external": {"method": "retain_model", "model": str(target)}})
    with pytest.raises(UserError, match="external: is what another tool trained, and lora trains; use adapter none"):
        run_config({"adapter": "lora", "external": {"method": "theirs", "model": str(target)}})
