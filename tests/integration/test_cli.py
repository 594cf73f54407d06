"""The command line on what a run left behind: bad input, fronts, configs that reproduce, the page."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from bench.benchmarks import BenchmarkConfig
from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.results import store
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.forget_losses import ForgetLossConfig

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(small_config: RunConfig, small_prerequisites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two methods, with a failed run among them."""
    folder = Path(shutil.copytree(small_prerequisites, tmp_path_factory.mktemp("cli") / "results"))
    execution = Execution(results=folder)
    run(small_config, execution, gate_thresholds=(0.5,))
    lora = {"adapter": "lora", "training.num_epochs": 2}
    run(run_config(overlay(small_config.to_dict(), {**lora, "adapter.learning_rate": 1e-3})), execution)
    with pytest.raises(Exception, match="diverged"):
        run(run_config(overlay(small_config.to_dict(), {**lora, "adapter.learning_rate": 1e30})), execution)
    return folder


def test_pareto_table(folder: Path, capsys: Captured) -> None:
    main(["pareto", str(folder)])
    printed = capsys.readouterr().out
    for word in ("grun+grad_ascent", "lora+grad_ascent", "target_model", "retain_model", "reference point"):
        assert word in printed


def test_pareto_json(folder: Path, capsys: Captured) -> None:
    main(["pareto", str(folder), "--format", "json"])
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {"objectives", "reference_point", "ideal_point", "hypervolume", "front", "per_method"}
    assert data["objectives"] == {"log10_forget_quality": "max", "model_utility": "max"}
    assert data["reference_point"][1] == 0.0
    assert {method["method"]: method["num_failed"] for method in data["per_method"]} == {
        "grun+grad_ascent": 0,
        "lora+grad_ascent": 1,
    }
    main(["pareto", str(folder), "--format", "json", "--objectives", "forget_rouge_l_recall:min", "model_utility:max"])
    answers = json.loads(capsys.readouterr().out)
    assert answers["hypervolume"] >= max(method["hypervolume"] for method in answers["per_method"]) > 0
    every = {point["run_key"] for method in data["per_method"] for point in method["front"]}
    assert {point["run_key"] for point in data["front"]} <= every


def test_front_configs_reproduce_their_rows(
    folder: Path, tmp_path: Path, capsys: Captured, assert_same_metrics: Any
) -> None:
    """`pareto` writes a config a front point; `train` on it gives the same run_key and the same metrics."""
    main(["pareto", str(folder), "--objectives", "forget_rouge_l_recall:min", "model_utility:max"])
    files = sorted((folder / "front").glob("grun*.yaml"))
    assert files
    stored = store.read_run(folder, run_config(yaml.safe_load(files[0].read_text())).run_key)
    assert stored is not None
    main(["train", str(files[0]), "--results", str(tmp_path)])
    again = store.read_run(tmp_path, stored["run_key"])
    assert again is not None
    assert_same_metrics(again, stored)
    assert stored["run_key"] in capsys.readouterr().out


def test_evaluate_a_module_at_another_threshold(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    module = next(path for path in (copy / "modules").iterdir() if (path / "edits.safetensors").exists())
    main(["evaluate", str(module), "--adapter.gate_threshold", "0.8"])
    rows = store.scan_runs(copy).to_dicts()
    assert [row["gate_threshold"] for row in rows if row["gate_threshold"] == 0.8] == [0.8]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(module), "--adapter.rank", "8"])
    assert stop.value.code == 2
    assert "without training again" in capsys.readouterr().err


def test_page_is_self_contained(folder: Path, capsys: Captured) -> None:
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    for word in ("GRUN + GradDiff", "LoRA + GradDiff", "gates", "said"):
        assert word in page
    assert re.findall(r"(?:src|href)\s*=\s*\S+", page) == ['href="data:,">'], "nothing is fetched"
    assert (folder / "fronts.png").read_bytes().startswith(b"\x89PNG")


def test_page_escapes_what_a_model_generated(folder: Path, tmp_path: Path) -> None:
    """A generation is untrusted text: no markup of it gets into the page; a browser shows it in test_page.py."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for row in store.scan_runs(copy).to_dicts():
        items = store.read_items(copy, row["run_key"])
        for item in items or []:
            del item["run_key"]
            item["generation"] = "<script>alert(1)</script>"
        store.write_run(copy, row, items or [])
    main(["report", str(copy)])
    page = (copy / "report.html").read_text()
    assert "<script>alert(1)</script>" not in page
    assert r"\u003cscript>alert(1)\u003c/script>" in page


def test_damaged_rows_are_left_out_and_counted(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    victim = next(row for row in store.scan_runs(copy).to_dicts() if row["adapter"] == "lora" and row["status"] == "ok")
    file = copy / "runs" / f"{victim['run_key']}.parquet"
    file.write_bytes(file.read_bytes()[:200])
    main(["pareto", str(copy)])
    assert "1 damaged files were left out" in capsys.readouterr().out


def test_keys_lists_the_chosen_adapters_settings(capsys: Captured) -> None:
    """Value, bounds and meaning of each; the keys of what is off by default, too."""
    main(["keys", "--adapter", "lora", "--adapter.r", "16", "--forget-loss", "npo"])
    printed = capsys.readouterr().out
    assert "--adapter.alpha" in printed
    assert "--adapter.gate-weight" not in printed
    assert "--adapter.gate_weight" not in printed
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.startswith("--")}
    assert lines["--adapter.r"][:8] == [*("16", "whole", "number", "≥", "1"), *("Rank", "of", "the")]
    assert lines["--adapter.dropout"][:6] == ["0.05", "number", "≥", "0,", "<", "1"]
    assert lines["--adapter"][:5] == ["lora", "eco", "or", "full", "or"]
    assert lines["--training.retain_weight"][0] == "1.0", "npo's own"
    assert lines["--evaluation.robustness"][:3] == ["null", "null", "or"]
    assert lines["--evaluation.robustness.quantize"][:4] == ["false", "true", "or", "false"]


def test_keys_lists_nothing_that_decides_nothing(capsys: Captured) -> None:
    """Corrupted prompts are trained by no loss."""
    main(["keys", "--adapter", "eco"])
    printed = capsys.readouterr().out
    assert "--adapter.strength" in printed
    assert "--evaluation.batch_size" in printed
    assert "--forget_loss" not in printed
    assert "--retain_loss" not in printed
    assert "--training" not in printed


def test_keys_lists_every_setting_there_is(capsys: Captured) -> None:
    """All leaves of the config, whichever is chosen; each can be given back as it is shown."""
    for model in ("tiny", "some/model"):
        opened = ["--model.prompt", "{}", "--evaluation.robustness", "{}", "--training.against_relearning", "{}"]
        main(["keys", "--model", model, *opened])
        shown = {
            line.split()[0].removeprefix("--") for line in capsys.readouterr().out.splitlines() if line[:2] == "--"
        }
        sections = {"evaluation": {"robustness": {}}, "training": {"against_relearning": {}}}
        config = run_config({"model": {"name": model, "prompt": {}}, **sections})
        whole = _leaves(config.to_dict()) + _leaves(asdict(config))
        leaves = {key.removesuffix(".name") for key in whole} | {"external.model", "external.model_digest"}
        leaves |= {"external.method", "external.tool"}  # what was unlearned elsewhere: there is no adapter beside it
        assert shown == leaves


def _leaves(config: dict[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found += _leaves(value, f"{above}{key}.") if isinstance(value, dict) else [f"{above}{key}"]
    return found


def _space(tmp_path: Path, **changes: Any) -> str:
    space: dict[str, Any] = {
        "study": "s",
        "search_space": {"adapter.rank": {"type": "int", "low": 1, "high": 8}},
        "num_trials": 1,
    }
    write_yaml(tmp_path / "space.yaml", {**space, **changes})
    return str(tmp_path / "space.yaml")


RANK = "adapter.rank"


def _names(union: Any) -> str:
    """Of all members, as an error lists them."""
    return ", ".join(repr(name) for name in sorted(member.name for member in get_args(union)))


BAD_INPUT: dict[str, tuple[Sequence[str], str]] = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["tarin"], "invalid choice: 'tarin'"),
    "unknown option": (["train", "--colour", "red"], "unrecognized arguments: --colour"),
    "unknown key": (["train", "--adapter.rnk", "4"], "adapter.rnk: unknown key; did you mean rank?"),
    "key without value": (["train", "--adapter.rank"], "--adapter.rank: has no value"),
    "unknown section": (["train", "--adaptor.rank", "4"], "unrecognized arguments"),
    "value out of range": (["train", "--adapter.rank", "0"], "adapter.rank: must be greater than or equal to 1"),
    "value of the wrong kind": (["train", "--seed", "abc"], "seed: must be a valid integer"),
    "negative weight": (["train", "--training.forget_weight", "-1"], "training.forget_weight: must be greater"),
    "unknown adapter": (["train", "--adapter", "lorra"], "adapter: must be one of 'eco', 'full', 'gated_lora'"),
    "unknown loss": (["train", "--forget-loss", "nop"], f"forget_loss: must be one of {_names(ForgetLossConfig)} (got"),
    "key of another adapter": (
        ["train", "--adapter", "lora", "--adapter.gate_weight", "1"],
        "adapter.gate_weight: unknown",
    ),
    "unknown benchmark": (
        ["train", "--benchmark", "touf"],
        f"benchmark: must be one of {_names(BenchmarkConfig)} (got",
    ),
    "missing split": (["train", "--benchmark", "tofu", "--benchmark.forget-split", "forget02"], "must be 'forget01'"),
    "missing data": (
        ["train", "--benchmark", "tofu", "--benchmark.data-dir", "/nowhere"],
        "full.json cannot be read; give the folder",
    ),
    "too few authors": (
        ["train", "--benchmark.num_authors", "5", "--benchmark.forget_split", "forget05"],
        "at least 20",
    ),
    "layer beyond the model": (["train", "--adapter.layers", "2,9"], "adapter.layers: layer 9 is beyond the model's 4"),
    "relative depth beyond 1": (["train", "--adapter.layers", "0.5,1.5"], "adapter.layers"),
    "no layers": (["train", "--adapter.layers", "[]"], "adapter.layers: must have at least 1 item"),
    "unreadable model": (["train", "--model", "/nowhere/model"], "model.name: /nowhere/model is not a folder"),
    "missing gguf": (["train", "--model", "missing.gguf"], "model.name: missing.gguf does not exist"),
    "width no multiple of heads": (["train", "--model.hidden_size", "65"], "model.hidden_size: 65 is not a multiple"),
    "no gpu": (["train", "--device", "cuda"], "--device: cuda was asked for"),
    "results not writable": (["train", "--results", "/proc/nowhere"], "--results: /proc/nowhere cannot be written"),
    "missing config": (["train", "missing.yaml"], "missing.yaml: cannot be read"),
    "no results": (["pareto", "/nowhere"], "holds no runs"),
    "unknown metric": (
        ["pareto", "FOLDER", "--objectives", "beauty:max", "model_utility:max"],
        "beauty is not a metric",
    ),
    "objective without direction": (["pareto", "FOLDER", "--objectives", "model_utility"], "has no direction"),
    "one objective": (["pareto", "FOLDER", "--objectives", "model_utility:max"], "1 given; name two or three"),
    "unknown column": (["pareto", "FOLDER", "--where", "colour=red"], "runs have no column colour"),
    "nothing matches": (["report", "FOLDER", "--where", "method=x"], "no run in"),
    "no module": (["evaluate", "/nowhere"], "holds no trained module"),
    "threshold out of range": (["train", "--gate-thresholds", "1.5"], "'1.5' is not a number from 0 to 1"),
    "no trials": (["sweep", "SPACE", "--num-trials", "0"], "'0' is not a whole number above 0"),
}
BAD_SPACES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"colour": "red"}, "colour: unknown key"),
    "no study": ({"study": ""}, "study: "),
    "unknown searched key": (
        {"search_space": {"adapter.rnk": {"type": "int", "low": 1, "high": 2}}},
        "did you mean rank",
    ),
    "range beyond the allowed": (
        {"search_space": {RANK: {"type": "int", "low": 0, "high": 8}}},
        "adapter.rank: must be",
    ),
    "bounds the wrong way round": ({"search_space": {RANK: {"type": "int", "low": 9, "high": 8}}}, "swap them"),
    "logarithm of zero": (
        {"search_space": {"adapter.gate_weight": {"type": "float", "low": 0, "high": 1, "log": True}}},
        "has no logarithm",
    ),
    "unknown kind of parameter": (
        {"search_space": {RANK: {"type": "real", "low": 1, "high": 2}}},
        "search_space.adapter.rank",
    ),
    "no choices": (
        {"search_space": {RANK: {"type": "categorical", "choices": []}}},
        "choices: must have at least 1 item",
    ),
    "unknown objective": ({"objectives": {"beauty": "max", "model_utility": "max"}}, "beauty is not a metric"),
    "one objective": ({"objectives": {"model_utility": "max"}}, "objectives: "),
    "threshold out of range": ({"gate_thresholds": [2.0]}, "2.0 is not a gate value"),
    "initial point beside the space": ({"initial_points": [{"seed": 1}]}, "seed is not in search_space"),
    "bad base": ({"base": {"training": {"num_epochs": 0}}}, "training.num_epochs: must be"),
    "more GPUs than there are": ({}, "--gpus-per-worker: 1 x 64 asked for a trial, but there are"),
}


def _one_line(argv: Sequence[str], capsys: Captured) -> str:
    """Run a command that must fail for a reason of the user's: exit 2, one line on stderr, no traceback."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("grun-bench: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, folder: Path, tmp_path: Path, small_config: RunConfig, capsys: Captured) -> None:
    argv, message = BAD_INPUT[case]
    argv = [{"FOLDER": str(folder), "SPACE": _space(tmp_path)}.get(word, word) for word in argv]
    if argv[:1] == ["train"] and "--results" not in argv:
        argv += ["--results", str(tmp_path / "results")]
    if case == "layer beyond the model":
        write_yaml(tmp_path / "small.yaml", small_config.to_dict())
        argv.insert(1, str(tmp_path / "small.yaml"))
    assert message in _one_line(argv, capsys)


@pytest.mark.parametrize("case", BAD_SPACES)
def test_bad_search_space(case: str, ray_address: str, tmp_path: Path, capsys: Captured) -> None:
    changes, message = BAD_SPACES[case]
    argv = ["sweep", _space(tmp_path, **changes), "--results", str(tmp_path / "results")]
    if case == "more GPUs than there are":
        argv += ["--gpus-per-worker", "64"]
    assert message in _one_line(argv, capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty or not a mapping"), ("- 1", "is empty or not a mapping"), ("a: [1", "is not valid YAML")],
)
def test_unreadable_yaml(content: str, message: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    assert message in _one_line(["sweep", str(tmp_path / "bad.yaml")], capsys)


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("{oops", "line 1 is not JSON")])
def test_empty_or_broken_data(content: str, message: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "full.json").write_text(content)
    argv = ["train", "--benchmark", "tofu", "--benchmark.data-dir", str(tmp_path), "--results", str(tmp_path / "r")]
    assert message in _one_line(argv, capsys)


def test_mixed_benchmarks_do_not_share_a_front(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    row = store.scan_runs(copy).to_dicts()[0]
    config = run_config(overlay(json.loads(row["config_json"]), {"benchmark.seed": 9}))
    store.write_run(copy, {**row, "run_key": config.run_key, "config_json": config.to_json()})
    assert "do not compare" in _one_line(["pareto", str(copy)], capsys)
