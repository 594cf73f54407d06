"""Fronts and hypervolumes of a folder: what they are measured from, what they refuse, what is drawn of them."""

from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.cli import tables
from bench.cli.main import main
from bench.page.report import write_report
from bench.reports.comparison import as_json, compare, write_front_configs
from bench.results import store
from bench.results.storage import location
from grun.errors import UserError

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = {
    "authors": "forget20",
    "questions": "forget",
    "wmdp": "bio",
    "corpora": "forget",
    "muse": "news_forget",
}


def _write(folder: Path, key: str, benchmark: str = "authors", **columns: Any) -> None:
    """One finished run; `items` are two forget items, so that the least log10 forget quality is log10(2/6)."""
    config = {"benchmark": {"name": benchmark}, "model": {"name": "tiny"}, "evaluation": {}, "key": key}
    row = {
        "run_key": key,
        "status": "ok",
        "method": "lora+npo",
        "adapter": "lora",
        "forget_loss": "npo",
        "benchmark": benchmark,
        "forget_split": SETTINGS[benchmark],
        "model": "tiny",
        "config_json": json.dumps(config),
        "created_at": START + timedelta(seconds=len(key)),
        "trainable_parameters": 10,
        "train_seconds": 1.0,
        **columns,
    }
    items = [{"split": "forget", "item_index": index, "question": "q", "answer": "a"} for index in range(2)]
    store.write_run(folder, row, items)


BOUNDED = {
    "authors": {"forget_extraction_strength": "min", "model_utility": "max"},
    "wmdp": {"wmdp_bio_accuracy": "min", "mmlu_accuracy": "max"},
    "corpora": {"forget_verbatim_rouge_l_f1": "min", "retain_knowledge_rouge_l_f1": "max"},
    "questions": {"log10_forget_quality": "max", "forget_truth_ratio_grun": "min"},
}


@pytest.mark.parametrize("benchmark", sorted(BOUNDED))
def test_a_bad_run_changes_nobodys_hypervolume(benchmark: str, tmp_path: Path) -> None:
    """Measured from each score's own worst value: 0, 1, or log10(2/6) for forget quality of two items each.

    The good run: 0.25 where less is better, 0.5 where more is; log10 quality halfway to its floor.
    """
    objectives: dict[str, Any] = BOUNDED[benchmark]
    floor = math.log10(2 / 6)
    good = {name: 0.25 if way == "min" else 0.5 for name, way in objectives.items()}
    expected = 0.75 * 0.5
    if benchmark == "questions":
        good["log10_forget_quality"] = floor / 2
        expected = 0.75 * -floor / 2
    _write(tmp_path, "good", benchmark, **good)
    alone = compare(tmp_path, objectives)
    assert alone.hypervolume == pytest.approx(expected)
    bad = {name: 0.9 if way == "min" else 0.1 for name, way in objectives.items()}
    if benchmark == "questions":
        bad["log10_forget_quality"] = 0.95 * floor
    _write(tmp_path, "the bad", benchmark, method="full+npo", **bad)
    beside = compare(tmp_path, objectives)
    assert beside.hypervolume == alone.hypervolume
    assert beside.corners == alone.corners
    assert beside.methods[0].method == "lora+npo"


def test_a_hypervolume_is_a_share_of_what_the_retain_model_reaches(tmp_path: Path) -> None:
    """From the target's forget quality and ROUGE-L, and from utility 0, though the target's 0.89 is below the retain
    model's: else all that is less useful than the target would count for nothing.

    The run is three quarters of the way to 0, at 0.45 of the retain model's 0.9: 0.75 · 0.5. One that knows less than
    the retain model, or is more useful, counts as that, so the box is full. Without a retain model: own units.
    """
    objectives: dict[str, Any] = {"log10_forget_quality": "max", "forget_rouge_l_recall": "min", "model_utility": "max"}
    none = {"adapter": "none", "forget_loss": None}
    known = {"log10_forget_quality": -0.4, "forget_rouge_l_recall": 1.0, "model_utility": 0.89}
    unknown = {"log10_forget_quality": 0.0, "forget_rouge_l_recall": 0.2, "model_utility": 0.9}
    run = {"log10_forget_quality": -0.1, "forget_rouge_l_recall": 0.6, "model_utility": 0.45}
    _write(tmp_path, "target", method="target_model", **none, **known)
    _write(tmp_path, "a", **run)
    alone = compare(tmp_path, objectives)
    assert alone.corners.best is None
    assert alone.hypervolume == pytest.approx((-0.1 - math.log10(2 / 6)) * 0.4 * 0.45)
    _write(tmp_path, "retain", method="retain_model", **none, **unknown)
    beside = compare(tmp_path, objectives)
    assert beside.corners.worst == [-0.4, 1.0, 0.0]
    assert beside.hypervolume == pytest.approx(0.75 * 0.5 * 0.5)
    over = {"log10_forget_quality": 0.0, "forget_rouge_l_recall": 0.0, "model_utility": 0.95}
    _write(tmp_path, "over", method="full+npo", **over)
    assert compare(tmp_path, objectives).hypervolume == pytest.approx(1.0)
    assert compare(tmp_path, {"model_utility": "max", "train_seconds": "min"}).hypervolume is None


def test_two_best_runs_a_method(tmp_path: Path) -> None:
    """Of what keeps the utility: least forget ROUGE-L; best forget quality, and of equals what forgets more."""
    none = {"method": "target_model", "adapter": "none"}
    _write(tmp_path, "target", model_utility=1.0, log10_forget_quality=-0.4, forget_rouge_l_recall=1.0, **none)
    for key, utility, quality, left in (
        ("a", 0.96, -0.3, 0.1),
        ("bb", 0.97, -0.1, 0.5),
        ("ccc", 0.99, -0.1, 0.4),
        ("dddd", 0.94, 0.0, 0.0),
    ):
        _write(tmp_path, key, model_utility=utility, log10_forget_quality=quality, forget_rouge_l_recall=left)

    def best(share: float) -> list[str | None]:
        (summary,) = compare(tmp_path, utility_kept=share).methods
        return [row and row["run_key"] for row in (summary.best, summary.best_quality)]

    assert best(0.95) == ["a", "ccc"]
    assert best(0.98) == ["ccc", "ccc"]
    assert best(0.9) == ["dddd", "dddd"]
    assert best(1.0) == [None, None]


def test_what_runs_are_measured_with_stays_beside_those_chosen(tmp_path: Path) -> None:
    """--where adapter.edits=answer: the target model has no such setting, and is still what utility is kept of.

    Not the one of another benchmark, with which nothing that was chosen compares.
    """
    scores = {"log10_forget_quality": -0.4, "model_utility": 0.9, "forget_rouge_l_recall": 0.5}
    settings = {"benchmark": {"name": "authors"}, "model": {"name": "tiny"}, "evaluation": {}}
    none = {"method": "target_model", "adapter": "none"}
    _write(tmp_path, "target", config_json=json.dumps({**settings, "adapter": {"name": "none"}}), **none, **scores)
    _write(tmp_path, "other", "questions", **none, **scores)
    for key, edits in (("a", "answer"), ("bb", "prompt_end")):
        config = {**settings, "adapter": {"name": "grun", "edits": edits}}
        _write(tmp_path, key, config_json=json.dumps(config), **scores)
    comparison = compare(tmp_path, where={"adapter.edits": "answer"})
    assert [row["run_key"] for row in comparison.runs] == ["a"]
    assert comparison.target_model is not None
    assert comparison.target_model["run_key"] == "target"
    assert comparison.methods[0].best is not None


def test_a_default_is_a_setting_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`edits` is written down where it is not prompt_end; --where finds the others, and says what no run has."""
    settings = {"benchmark": {"name": "authors"}, "model": {"name": "tiny"}, "evaluation": {}}
    scores = {"log10_forget_quality": -0.4, "model_utility": 0.9}
    for key, adapter in (("a", {"name": "grun"}), ("bb", {"name": "grun", "edits": "answer"}), ("c", {"name": "lora"})):
        _write(tmp_path, key, config_json=json.dumps({**settings, "adapter": adapter}), **scores)
    asked = ["pareto", str(tmp_path), "--format", "json", "--where"]
    main([*asked, "adapter.edits=prompt_end"])
    assert [point["run_key"] for point in json.loads(capsys.readouterr().out)["front"]] == ["a"]
    with pytest.raises(SystemExit, match="2"):
        main([*asked, "adapter.edit=answer"])
    assert "--where: no run has a setting adapter.edit; `grun-bench keys` lists them" in capsys.readouterr().err


def test_costs_have_fronts_but_no_hypervolume(tmp_path: Path) -> None:
    """Seconds have no worst value: a corner taken from the runs seen would move with the next of them."""
    _write(tmp_path, "a", model_utility=0.5, train_seconds=10.0)
    _write(tmp_path, "bb", model_utility=0.4, train_seconds=20.0)
    comparison = compare(tmp_path, {"model_utility": "max", "train_seconds": "min"})
    assert [row["run_key"] for row in comparison.front] == ["a"]
    assert comparison.hypervolume is None
    assert comparison.corners.worst == [0.0, None]
    assert json.loads(as_json(comparison))["hypervolume"] is None


def test_a_benchmark_with_a_utility_and_no_split_called_forget(tmp_path: Path) -> None:
    """MUSE: two runs of a method keep the target's utility; of neither is there a forget ROUGE-L to choose by."""
    scores = {"retain_knowmem_rouge_l_f1": 0.9, "partial_model_utility": 0.9}
    none = {"method": "target_model", "adapter": "none"}
    _write(tmp_path, "a", "muse", forget_knowmem_rouge_l_f1=0.9, **none, **scores)
    for key, left in (("bb", 0.2), ("ccc", 0.3)):
        _write(tmp_path, key, "muse", forget_knowmem_rouge_l_f1=left, **scores)
    comparison = compare(tmp_path)
    (summary,) = comparison.methods
    assert summary.best is None
    assert not comparison.says_best, "that none keeps the utility would be wrong"
    assert summary.recommended is not None
    assert summary.recommended["run_key"] == "bb"


def test_what_is_best_in_the_middle_is_no_objective(tmp_path: Path) -> None:
    """privleak is -100 where all leaks and above 0 where too much was done: neither min nor max means anything."""
    _write(tmp_path, "a", privleak=-100.0, abs_privleak=100.0, model_utility=0.5)
    with pytest.raises(UserError, match="privleak is best in the middle, so neither max nor min; use abs_privleak"):
        compare(tmp_path, {"privleak": "min", "model_utility": "max"})
    assert compare(tmp_path, {"abs_privleak": "min", "model_utility": "max"}).hypervolume == 0.0, "100 is the worst"


def test_what_changes_no_score_keeps_nobody_apart(tmp_path: Path) -> None:
    """Two batch sizes and an attack share a front; two lengths of answers do not, and --where tells them apart."""
    scores = {"log10_forget_quality": -0.1, "model_utility": 0.5}
    for key, evaluation in (
        ("a", {"batch_size": 64, "max_new_tokens": 200}),
        ("bb", {"batch_size": 4, "max_new_tokens": 200, "robustness": {}}),
        ("ccc", {"batch_size": 4, "max_new_tokens": 20}),
    ):
        config = {"benchmark": {"name": "authors"}, "model": {"name": "tiny"}, "evaluation": evaluation}
        _write(tmp_path, key, config_json=json.dumps(config), **scores)
    with pytest.raises(
        UserError, match=r"2 .* \(evaluation\.max_new_tokens=200 or 20\); choose with --where KEY=VALUE"
    ):
        compare(tmp_path)
    assert len(compare(tmp_path, where={"evaluation.max_new_tokens": "200"}).runs) == 2


@pytest.mark.parametrize("attack", ["loss", "zlib", "min_k", "min_k_plus", "reference", "gradnorm"])
def test_an_attack_that_is_wrong_of_all_tells_too(attack: str, tmp_path: Path) -> None:
    """An AUC of 0 tells the forget set from strangers as surely as one of 1: least is not best."""
    _write(tmp_path, "a", **{f"mia_{attack}_auc": 0.0}, model_utility=0.5)
    with pytest.raises(UserError, match="_auc is best in the middle, so neither max nor min; use abs_privleak"):
        compare(tmp_path, {f"mia_{attack}_auc": "min", "model_utility": "max"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_nothing_but_numbers_on_a_front(value: float | None, tmp_path: Path) -> None:
    _write(tmp_path, "a", model_utility=value, forget_quality=0.5)
    _write(tmp_path, "bb", model_utility=0.5, forget_quality=0.25)
    comparison = compare(tmp_path, {"model_utility": "max", "forget_quality": "max"})
    assert [row["run_key"] for row in comparison.front] == ["bb"]
    assert comparison.hypervolume == pytest.approx(0.125)
    assert "NaN" not in as_json(comparison)
    assert "Infinity" not in as_json(comparison)


def test_configs_of_an_earlier_front_do_not_stay(tmp_path: Path) -> None:
    """Two points, then a run that beats both: one file."""
    objectives: dict[str, Any] = {"model_utility": "max", "forget_quality": "max"}
    _write(tmp_path, "a", model_utility=0.5, forget_quality=0.2)
    _write(tmp_path, "bb", model_utility=0.2, forget_quality=0.5)
    front = location(tmp_path / "front")
    write_front_configs(compare(tmp_path, objectives), front)
    assert [file.name for file in front.files()] == ["lora+npo-01.yaml", "lora+npo-02.yaml"]
    _write(tmp_path, "ccc", model_utility=0.6, forget_quality=0.6)
    write_front_configs(compare(tmp_path, objectives), front)
    assert [file.name for file in front.files()] == ["lora+npo-01.yaml"]
    assert "ccc" in (tmp_path / "front" / "lora+npo-01.yaml").read_text()


SCORED = {
    "authors": {"log10_forget_quality": -0.1, "model_utility": 0.5, "forget_rouge_l_recall": 0.2},
    "questions": {"log10_forget_quality": -0.1, "partial_model_utility": 0.5, "forget_rouge_l_recall": 0.2},
    "wmdp": {"wmdp_bio_accuracy": 0.3, "mmlu_accuracy": 0.6},
    "corpora": {"forget_verbatim_rouge_l_f1": 0.3, "retain_verbatim_rouge_l_f1": 0.6},
}


@pytest.mark.parametrize(
    ("benchmark", "what"),
    [*((benchmark, "finished") for benchmark in sorted(SCORED)), ("authors", "failed"), ("wmdp", "references")],
)
def test_any_folder_has_a_page(benchmark: str, what: str, tmp_path: Path) -> None:
    """LoRA runs only (no gates anywhere), without the second panel's scores, all failed, or nothing but the target."""
    if what == "finished":
        _write(tmp_path, "a", benchmark, **SCORED[benchmark])
    elif what == "failed":
        _write(tmp_path, "a", benchmark, status="failed", error="no luck")
    if what != "failed":
        role = {"method": "target_model", "adapter": "none", "forget_loss": None}
        _write(tmp_path, "target", benchmark, **SCORED[benchmark], **role)
    comparison = compare(tmp_path)
    assert len(comparison.runs) == (what == "finished")
    picture = location(tmp_path / "fronts.png")
    page, *_ = write_report(comparison, tmp_path, picture)
    assert f"{benchmark} {SETTINGS[benchmark]}, tiny" in page.read().decode()
    assert picture.read().startswith(b"\x89PNG")


def test_a_methods_name_is_printed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hundred columns, beside numbers as long as they get: what `--where method=` takes may break, not end in …"""
    printed = Console(width=100, record=True, file=io.StringIO())
    monkeypatch.setattr(tables, "console", printed)
    numbers = {"log10_forget_quality": -44.182, "model_utility": 0.9142, "forget_rouge_l_recall": 0.1034}
    methods = {"gated_lora+rmu+rmu_mse", "grun_latched+grad_ascent"}
    for key, method in enumerate(sorted(methods)):
        _write(tmp_path, f"k{key}" * 8, method=method, trainable_parameters=12_345_678, train_seconds=1234.5, **numbers)
    _write(tmp_path, "target", method="target_model", adapter="none", **numbers)
    comparison = compare(tmp_path)
    tables.print_methods(comparison)
    tables.print_front(comparison)
    text = printed.export_text()
    assert "gated_lora+rmu" in text
    assert "…" not in text


def test_a_sequences_names_are_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = Console(width=100, record=True, file=io.StringIO())
    monkeypatch.setattr(tables, "console", printed)
    scores = ("requested_rouge_l_recall", "log10_requested_quality", "utility", "retain_rouge_l_recall")
    state = {"combination": "scaled_by_number", "gate_threshold": 0.5, "false_openings": 0.0123, "is_own_variant": True}
    row = {"study": "sequential-smollm2", "method": "grun_latched+grad_ascent", "request_index": 100, **state}
    costs = {"added_parameters": 106_203_456, "mean_train_seconds": 1242.1, "retain_gate_open_share": 0.123}
    tables.print_sequences([{**row, **dict.fromkeys(scores, 0.123), "log10_requested_quality": -44.182, **costs}])
    text = printed.export_text()
    assert "…" not in text
    for shown in ("sequential-smol", "grun_latched+grad", "scaled_by_n", "106,203,456", "1242.1"):
        assert shown in text


def test_runs_that_lack_an_objective_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Questions without wrong answers have no forget quality: what was trained on them stands on no front, and that is
    said, in the table and on the page."""
    _write(tmp_path, "a" * 16, "questions", partial_model_utility=0.5, forget_rouge_l_recall=0.2)
    _write(tmp_path, "b" * 16, "questions", status="failed")
    _write(tmp_path, "c" * 16, "questions", method="target_model", adapter="none", partial_model_utility=0.6)
    tables.print_methods(compare(tmp_path))
    said = "1 runs without log10_forget_quality or partial_model_utility were left out; --objectives chooses others"
    assert said in " ".join(capsys.readouterr().out.split())
    write_report(compare(tmp_path), tmp_path, location(tmp_path) / "fronts.png")
    assert (
        "1 without log10_forget_quality or partial_model_utility were left out"
        in (tmp_path / "report.html").read_text()
    )
    better = compare(tmp_path, {"forget_rouge_l_recall": "min", "partial_model_utility": "max"})
    assert (better.num_unscored, len(better.runs)) == (0, 1)
