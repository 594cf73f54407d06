"""Every file of search_spaces/ from its first command to the last one that reads its folder, on tiny models.

All is as a user has it but Ray, whose workers would spend minutes on imports: what it is handed is done here, one after
another. Sweeps of our own go through Ray in test_sweep.py and test_faults.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from bench.benchmarks import BenchmarkConfig
from bench.cli.main import main
from bench.config import overlay
from bench.files import write_yaml
from bench.results import store
from bench.results.columns import SCORES
from bench.results.requests import scan_requests

OF_TOFU = [
    f"sequential_{method}" for method in ("grun", "router", "lora", "gated_lora", "full", "reft", "smollm2_grun")
]
SPACES = Path(__file__).parents[2] / "search_spaces"
TINY = {
    "model": "tiny",
    "model.num_layers": 3,
    "model.hidden_size": 16,
    "model.vocab_size": 300,
    "model.fine_tuning.num_epochs": 1,
    "training.num_epochs": 1,
    "training.batch_size": 64,
    "evaluation.max_items_per_split": 2,
    "evaluation.max_new_tokens": 2,
}


def _run(command: str, files: list[str], folder: Path, settings: dict[str, Any], *words: str) -> None:
    """files: patterns of search_spaces/."""
    found = [str(file) for pattern in files for file in sorted(SPACES.glob(f"{pattern}.yaml"))]
    given = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    main([command, *found, "--results", str(folder), *words, *given])


@pytest.mark.parametrize(
    ("files", "settings", "forget_losses"),
    [
        ("demo_*", {"benchmark.num_authors": 5}, ["grad_ascent", "npo", "idk"]),
        ("tofu_*", {"benchmark.forget_split": "forget01", "benchmark.num_items": 60}, ["grad_ascent", "npo", "idk"]),
        # Of ten losses one with a setting of its own, and one with a retain loss of its own: each is 7 of 70 studies.
        # `eco` has none.
        ("results_[!e]*", {"benchmark.num_items": 60, "forget_loss": "npo"}, ["npo"]),
        ("results_[!e]*", {"benchmark.num_items": 60, "forget_loss": "rmu"}, ["rmu+rmu_mse"]),
    ],
    ids=["demo", "tofu", "results-npo", "results-rmu"],
)
def test_a_sweep_of_the_shipped_spaces(
    without_ray: None,
    made_up_tofu_dir: Path,
    tmp_path: Path,
    files: str,
    settings: dict[str, Any],
    forget_losses: list[str],
) -> None:
    """A training a study succeeds, and all that reads the folder can; the seeds are one loss's, one a file."""
    given = TINY | settings | ({} if files == "demo_*" else {"benchmark.data-dir": made_up_tofu_dir})
    _run("sweep", [files], tmp_path, given, "--num-trials", "1")
    rows = store.scan_runs(tmp_path)
    assert rows["status"].unique().to_list() == ["ok"]
    named = (file.stem.partition("_")[2] for file in SPACES.glob(f"{files}.yaml"))
    adapters = ["grun_latched" if name == "grun_router" else name for name in named]  # latched, behind another gate
    methods = {f"{adapter}+{loss}" for adapter in adapters for loss in forget_losses}
    assert set(rows["method"]) == methods | {"target_model", "retain_model"}
    main(["pareto", str(tmp_path)])
    main(["report", str(tmp_path)])
    first = forget_losses[0]
    main(["seeds", str(tmp_path), "--num-seeds", "1", "--where", f"forget_loss={first.partition('+')[0]}"])
    table = (tmp_path / "seeds.md").read_text()
    for adapter in adapters:
        assert f"| {adapter}+{first} | 1 |" in table


def test_a_sweep_of_corrupted_prompts(without_ray: None, made_up_tofu_dir: Path, tmp_path: Path) -> None:
    """Nothing is trained: thresholds have rows of a method without a loss, and all that reads the folder can."""
    given = TINY | {"benchmark.num_items": 60, "benchmark.data-dir": made_up_tofu_dir}
    _run("sweep", ["results_eco"], tmp_path, given, "--num-trials", "1")
    rows = store.scan_runs(tmp_path).filter(method="eco")
    assert rows["status"].unique().to_list() == ["ok"]
    assert {0.0, 0.5, 0.9} <= set(rows["gate_threshold"])
    assert rows["forget_loss"].unique().to_list() == [None]
    assert rows["trainable_parameters"].unique().to_list() == rows["num_steps"].unique().to_list() == [0]
    for command in ("pareto", "report"):
        main([command, str(tmp_path)])
    main(["seeds", str(tmp_path), "--num-seeds", "1"])
    assert "| eco | 1 |" in (tmp_path / "seeds.md").read_text()


def test_a_sweep_of_wmdps_spaces(
    without_ray: None, wmdp_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both studies on a tiny model: the first sweep of a folder, then everything that reads it."""
    settings = {
        "benchmark.data-dir": wmdp_dir,
        "benchmark.num-passages": 8,
        "model": "tiny",
        "model.num_layers": 4,
        "model.hidden_size": 64,
        "model.vocab_size": 400,
        "model.fine_tuning.num_epochs": 2,
        "adapter.layers": "1,3",
        "forget-loss.layer": 3,
    }
    _run("sweep", ["wmdp_*"], tmp_path, settings, "--num-trials", "1")
    assert "target_model: wmdp bio accuracy " in capsys.readouterr().out
    main(["pareto", str(tmp_path)])
    main(["report", str(tmp_path)])
    main(["seeds", str(tmp_path), "--num-seeds", "1"])
    table = (tmp_path / "seeds.md").read_text()
    for method in ("grun+rmu+rmu_mse", "full+rmu+rmu_mse"):
        assert f"| {method} | 1 |" in table


def test_the_papers_recipes(without_ray: None, made_up_tofu_dir: Path, wmdp_dir: Path, tmp_path: Path) -> None:
    """They run as they are, but for the model and less of the data: NPO with each adapter, RMU by both."""
    tofu = {"benchmark.data-dir": made_up_tofu_dir, "benchmark.forget_split": "forget01", "benchmark.num_items": 60}
    # A model that is taught the passages is another one where more is read of them, so that its runs do not compare.
    wmdp = {"benchmark.data-dir": wmdp_dir, "benchmark.num-passages": 4, "benchmark.cyber-tokens": 768}
    few = {"evaluation.robustness.quantize": False, "evaluation.robustness.relearn_steps": 1}
    _run(
        "sweep",
        ["paper/tofu_*_llama"],
        tmp_path / "tofu",
        TINY | tofu | few | {"forget_loss": "npo"},
        "--num-trials",
        "1",
    )
    _run("sweep", ["paper/wmdp_*_llama"], tmp_path / "wmdp", TINY | wmdp)
    for benchmark, methods in (
        ("tofu", {"grun+npo", "lora+npo", "full+npo"}),
        ("wmdp", {"grun+rmu+rmu_mse", "full+rmu+rmu_mse"}),
    ):
        rows = store.scan_runs(tmp_path / benchmark)
        assert rows["status"].unique().to_list() == ["ok"]
        assert set(rows["method"]) >= methods


@pytest.mark.parametrize("benchmark", ["questions", "corpora", "rwku", "muse"])
def test_a_sweep_of_ones_own_data(
    without_ray: None, benchmark: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The first sweep of a folder on each benchmark that no shipped file is about, by its own objectives."""
    (kind,) = [each for each in get_args(BenchmarkConfig) if each.name == benchmark]
    folder = request.getfixturevalue(f"{benchmark}_dir")
    ways = {name: SCORES[name].better for name in kind.objectives}
    base = overlay({}, TINY | {"adapter": "lora", "benchmark": benchmark, "benchmark.data_dir": str(folder)})
    rate = {"type": "float", "low": 1e-4, "high": 1e-3}
    space = {"study": "s", "base": base, "objectives": ways, "search_space": {"adapter.learning_rate": rate}}
    write_yaml(tmp_path / "space.yaml", space)
    main(["sweep", str(tmp_path / "space.yaml"), "--results", str(tmp_path / "r"), "--num-trials", "1"])
    main(["pareto", str(tmp_path / "r")])
    main(["report", str(tmp_path / "r")])
    main(["seeds", str(tmp_path / "r"), "--num-seeds", "1"])
    assert "| lora+grad_ascent | 1 |" in (tmp_path / "r" / "seeds.md").read_text()


def test_the_example_of_own_knowledge(
    without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny model that was taught nothing; without a retain model there is no forget quality, and a line says so."""
    monkeypatch.chdir(SPACES.parent)
    space, settings = Path("docs/examples/capitals/space"), TINY | {"model.fine_tuning.num_epochs": 0}
    _run("sweep", [str(".." / space)], tmp_path, settings, "--num-trials", "1")
    assert set(store.scan_runs(tmp_path)["method"]) == {"target_model", "grun_latched+idk"}
    with pytest.raises(SystemExit, match="2"):
        main(["seeds", str(tmp_path), "--num-seeds", "1"])
    assert "--objectives: 2 finished runs" in capsys.readouterr().err
    scored = ["--objectives", "forget_rouge_l_recall:min", "partial_model_utility:max"]
    main(["seeds", str(tmp_path), "--num-seeds", "1", *scored])
    table = (tmp_path / "seeds.md").read_text()
    assert "| grun_latched+idk | 1 |" in table
    assert f"--utility-kept 0.95 {' '.join(scored)}\n" in table, "the command makes the table again"


@pytest.mark.parametrize(
    ("files", "settings", "num_requests"),
    [
        (OF_TOFU, {"benchmark.forget_split": "forget10", "benchmark.num_items": 440}, 1),
        (["sequential_hard"], {"benchmark.num_authors": 10, "benchmark.num_similar_authors": 1}, 1),
        (["sequential_hundred"], {"benchmark.num_authors": 6}, 2),
    ],
    ids=["tofu", "hard", "hundred"],
)
def test_the_shipped_sequences(
    without_ray: None,
    made_up_tofu_dir: Path,
    tmp_path: Path,
    files: list[str],
    settings: dict[str, Any],
    num_requests: int,
) -> None:
    """Each method is tuned and put to the requests, the folder has its page, and GRUN's modules are deployed."""
    tofu = {"benchmark.data-dir": made_up_tofu_dir, "adapter.learning_rate": 0.001, "forget_loss": "npo"}
    given = TINY | settings | (tofu if len(files) > 1 else {})
    _run("sequential", files, tmp_path, given, "--num-requests", str(num_requests))
    rows = scan_requests(tmp_path)
    assert set(rows["study"]) == {file.replace("_", "-") for file in files}
    main(["report", str(tmp_path)])
    assert "001" in (tmp_path / "report.html").read_text()
    study = files[0].replace("_", "-")
    without = ["--without", "001"] if len(set(rows["evaluated_request"])) > 1 else []
    main(["export", str(tmp_path), "--study", study, "--output", str(tmp_path / "out"), *without])
