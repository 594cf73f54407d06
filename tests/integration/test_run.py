"""One run, from config to rows: it forgets, it keeps, it is written once and can be reproduced."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from bench.config import RunConfig, overlay, run_config
from bench.evaluation.asking import Asking, EvaluationConfig, drafts_of
from bench.evaluation.evaluate import evaluate
from bench.evaluation.score import score
from bench.results import store
from bench.results.columns import METRICS
from bench.runs.execution import Execution
from bench.runs.run import run, run_prerequisites
from bench.studies.rescore import rescore
from grun.adapters.grun import GrunConfig
from grun.model.forward import PlainModel, go_on
from grun.unlearned import load

THRESHOLDS = (0.5, 0.9)


@pytest.fixture(scope="module")
def finished(
    small_config: RunConfig, small_prerequisites: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A results folder with target, retain model and one GRUN module at three thresholds."""
    folder = Path(shutil.copytree(small_prerequisites, tmp_path_factory.mktemp("run") / "results"))
    execution = Execution(results=folder)
    rows = run_prerequisites(small_config, execution)
    return folder, [*rows, *run(small_config, execution, gate_thresholds=THRESHOLDS)]


def test_target_memorises_and_retain_model_does_not_know(finished: Any) -> None:
    retain_model, target, *_ = finished[1]
    assert target["forget_rouge_l_recall"] >= 0.95
    assert target["retain_rouge_l_recall"] >= 0.95
    assert target["real_authors_rouge_l_recall"] >= 0.95
    assert retain_model["retain_rouge_l_recall"] >= 0.95
    assert retain_model["forget_rouge_l_recall"] < 0.5
    assert (retain_model["forget_quality"], retain_model["log10_forget_quality"]) == (1.0, 0.0)
    assert target["forget_quality"] < 0.05


def test_grun_forgets_and_keeps(finished: Any) -> None:
    _, target, *unlearned = finished[1]
    for row in unlearned[:2]:
        assert row["forget_rouge_l_recall"] <= 0.3
        assert row["gate_auc"] > 0.95
    assert unlearned[1]["gate_threshold"] == 0.5
    assert unlearned[1]["retain_rouge_l_recall"] >= 0.95 * target["retain_rouge_l_recall"]
    assert unlearned[0]["trainable_parameters"] < 0.05 * target_parameters(finished)


def target_parameters(finished: Any) -> int:
    """Weights of the small target model, counted from its own config: 600 x 64 shared with the head, 4 layers."""
    config = json.loads(finished[1][1]["config_json"])["model"]
    width, layers = config["hidden_size"], config["num_layers"]
    return config["vocab_size"] * width + layers * (4 * width**2 + 3 * width * (width * 11 // 4))


def test_thresholds_share_one_module(finished: Any) -> None:
    """One training, one row a threshold; raising the threshold never opens a first gate."""
    folder, (_, _, *unlearned) = finished
    assert [row["gate_threshold"] for row in unlearned] == [0.0, 0.5, 0.9]
    assert len({row["train_key"] for row in unlearned}) == 1
    assert len({row["train_seconds"] for row in unlearned}) == 1
    assert len(list((folder / "modules").iterdir())) == 1
    shares = [row["retain_gate_open_share"] for row in unlearned]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)


def test_rows_are_not_computed_twice(finished: Any, small_config: RunConfig) -> None:
    folder, rows = finished
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    again = run(small_config, Execution(results=folder), gate_thresholds=THRESHOLDS)
    assert [row["run_key"] for row in again] == [row["run_key"] for row in rows[2:]]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")} == before


def test_what_a_run_is_measured_with_is_made_before_it(small_config: RunConfig, tmp_path: Path) -> None:
    """In an empty folder, for one run: retain model, target model, and only then the run itself."""
    phases: list[str] = []
    config = run_config(overlay(small_config.to_dict(), {"training.num_epochs": 1}))
    rows = run(config, Execution(results=tmp_path), progress=lambda phase, done, total: phases.append(phase))
    assert [row["method"] for row in rows] == ["grun+grad_ascent"]
    assert store.scan_runs(tmp_path)["method"].to_list() == ["retain_model", "target_model", "grun+grad_ascent"]
    first_step = next(place for place, phase in enumerate(phases) if phase.startswith("unlearn"))
    assert phases[:first_step].count("evaluate world_facts") > phases[first_step:].count("evaluate world_facts") == 1


def test_damaged_items_of_the_target_model_are_made_again(
    finished: Any, small_config: RunConfig, tmp_path: Path, assert_same_metrics: Any
) -> None:
    """Its row is whole, so that nobody missed them: what is reused of them is there again."""
    folder, rows = Path(shutil.copytree(finished[0], tmp_path / "r")), finished[1]
    (folder / "items" / f"{rows[1]['run_key']}.parquet").write_bytes(b"PAR1 and then nothing")
    (folder / "runs" / f"{rows[2]['run_key']}.parquet").unlink()
    (again,) = run(small_config, Execution(results=folder))
    assert_same_metrics(again, rows[2])
    assert store.read_items(folder, rows[1]["run_key"]) is not None


def test_a_new_threshold_needs_no_training(finished: Any, small_config: RunConfig) -> None:
    folder, rows = finished
    assert isinstance(small_config.adapter, GrunConfig)
    config = dataclasses.replace(small_config, adapter=dataclasses.replace(small_config.adapter, gate_threshold=0.7))
    phases = set()
    (row,) = run(config, Execution(results=folder), progress=lambda phase, done, total: phases.add(phase))
    assert row["train_seconds"] == rows[2]["train_seconds"]
    assert all(phase.startswith("evaluate") for phase in phases)
    (folder / "runs" / f"{row['run_key']}.parquet").unlink()


def test_training_again_gives_the_same_row(
    finished: Any, small_config: RunConfig, small_results: Path, assert_same_metrics: Any
) -> None:
    """Another folder, no module to reuse: same run_key, same scores."""
    first = finished[1][2]
    (again,) = run(small_config, Execution(results=small_results))
    assert again["run_key"] == first["run_key"]
    assert_same_metrics(again, first)


def test_every_score_follows_from_the_rows(finished: Any) -> None:
    """Rescoring the stored items gives the stored metrics, so any definition can be changed afterwards."""
    folder, rows = finished
    gold = store.read_items(folder, rows[0]["run_key"])
    for row in rows:
        items = store.read_items(folder, row["run_key"])
        assert items is not None
        again = score(items, gold, row["gate_threshold"] or 0.0)
        assert again == {name: pytest.approx(row[name]) for name in again}
        assert {name for name in METRICS if row[name] is not None} == set(again)


def test_items_hold_the_raw_values(finished: Any) -> None:
    folder, rows = finished
    items = store.scan_items(folder, [rows[2]["run_key"]])
    assert items.group_by("split").len().sort("split").rows() == [
        ("forget", 10),
        ("holdout", 20),
        ("real_authors", 20),
        ("retain", 40),
        ("world_facts", 20),
    ]
    assert items["gate"].list.len().unique().to_list() == [3]
    forget = items.filter(pl.col("split") == "forget")
    assert forget["wrong_nll"].list.len().unique().to_list() == [5]
    assert forget["paraphrase_nll"].null_count() == 0
    assert items.filter(pl.col("split") == "world_facts")["paraphrase_nll"].null_count() == 20
    assert (items["answer_nll"] >= 0).all()


def test_batch_of_sixteen_is_sixteen_batches_of_one(finished: Any, small_config: RunConfig, tmp_path: Path) -> None:
    """Padding changes no per-item value: relative difference at most 1e-5, and the same answers."""
    folder, rows = finished
    target = json.loads(rows[1]["config_json"])
    stored = store.scan_items(folder, [rows[1]["run_key"]])
    run(run_config(overlay(target, {"evaluation.batch_size": 1})), Execution(results=tmp_path))
    (alone_key,) = [
        row["run_key"]
        for row in store.scan_runs(tmp_path).to_dicts()
        if json.loads(row["config_json"])["start_from"] == "target_model"
    ]
    alone = store.scan_items(tmp_path, [alone_key])
    both = stored.join(alone, on=["split", "item_index"], suffix="_alone")
    assert both.height == stored.height
    assert both["generation"].to_list() == both["generation_alone"].to_list()
    for column in ("answer_nll", "paraphrase_nll"):
        values, others = both[column].drop_nulls(), both[f"{column}_alone"].drop_nulls()
        assert values.to_list() == pytest.approx(others.to_list(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("max_new_tokens", [200, 3])
def test_answers_that_follow_from_the_likelihoods_are_those_decoded(
    max_new_tokens: int, fresh_target: Any, small_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, from a model that knows most answers and lost some; and few of them had to be decoded."""
    model, template = fresh_target()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight += 0.35 * weight.std() * torch.randn(weight.shape, generator=noise)
    decoded: list[int] = []
    passes: list[int] = []
    decode = model.forward

    def counted(answer: Any, which: int) -> Any:
        """An answering function that notes how many it is asked for (argument `which`) and how many passes it takes."""

        def run(*inputs: Any) -> Any:
            decoded.append(len(inputs[which]))
            with monkeypatch.context() as decoding:
                decoding.setattr(model, "forward", lambda **inputs: passes.append(1) or decode(**inputs))
                return answer(*inputs)

        return run

    monkeypatch.setattr(PlainModel, "generate", counted(PlainModel.generate, 1))
    monkeypatch.setattr("bench.evaluation.evaluate.go_on", counted(go_on, 0))
    config = EvaluationConfig(max_new_tokens=max_new_tokens)
    asking = Asking(adapted=PlainModel(model), template=template, config=config)
    drafts: dict[tuple[str, int], str] = {}
    rows, cost = [], []
    for asked in (dataclasses.replace(asking, decode_all=True), asking, dataclasses.replace(asking, drafts=drafts)):
        decoded.clear()
        passes.clear()
        rows.append(evaluate(asked, small_benchmark.evaluation))
        cost.append(len(passes))
        drafts |= drafts_of(rows[0])  # as good as another model's can be
        assert (sum(decoded) == len(rows[0])) == asked.decode_all
    assert rows[0] == rows[1] == rows[2]
    told: list[str] = []
    small = dataclasses.replace(config, batch_size=4)
    in_small = dataclasses.replace(asking, config=small, progress=lambda what, done, total: told.append(what))
    small_rows = evaluate(in_small, small_benchmark.evaluation)
    assert [row["generation"] for row in small_rows] == [row["generation"] for row in rows[0]]
    last_scored = max(at for at, what in enumerate(told) if what != "evaluate answers")
    assert "evaluate answers" in told[:last_scored], "what is begun takes memory: a batch of it is not left waiting"
    if max_new_tokens == 200:  # a pass for a draft pays where answers are long
        assert cost[0] > cost[1] > 2 * cost[2]
    lost = [not all(row["token_is_argmax"]) for row in rows[0] if row["split"] != "holdout"]
    assert 0.1 < sum(lost) / len(lost) < 0.9


def test_a_diverging_run_is_a_row_too(small_config: RunConfig, small_results: Path) -> None:
    config = run_config(
        overlay(small_config.to_dict(), {"adapter": "full", "adapter.learning_rate": 1e30, "training.num_epochs": 2})
    )
    with pytest.raises(Exception, match="diverged"):
        run(config, Execution(results=small_results))
    row = store.scan_runs(small_results).filter(pl.col("status") == "failed").to_dicts()[0]
    assert row["run_key"] == config.run_key
    assert row["error"].startswith("adapter.learning_rate: training diverged at step")
    assert all(row[metric] is None for metric in METRICS)


def test_three_lines_of_python(finished: Any, small_benchmark: Any) -> None:
    folder, _ = finished
    (module,) = (folder / "modules").iterdir()
    model = load(module)
    item = small_benchmark.retain_set[0]
    assert model.generate(item.question) == item.answer
    forgotten = small_benchmark.forget_set[0]
    assert model.generate(forgotten.question) != forgotten.answer


def test_old_results_are_rescored(finished: Any, tmp_path: Path) -> None:
    """Metrics that were wrong or missing come back, from the items alone; a run without items is left as it is."""
    folder, rows = finished
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    spoiled = {**rows[2], "model_utility": 0.123, "mia_loss_auc": None, "forget_extraction_strength": 0.9}
    store.write_run(copy, spoiled)
    (copy / "items" / f"{rows[3]['run_key']}.parquet").unlink()
    rescored, lost = rescore(copy)
    assert lost == 1
    assert rescored == len(list((copy / "runs").glob("*.parquet"))) - 1
    again = store.read_run(copy, rows[2]["run_key"])
    assert again is not None
    for name in METRICS:
        assert again[name] == (None if rows[2][name] is None else pytest.approx(rows[2][name])), name
    assert again["created_at"] == rows[2]["created_at"]


def test_rows_written_before_a_column_existed_can_be_read(finished: Any, tmp_path: Path) -> None:
    """A file without the newer columns gives nulls there."""
    folder, rows = finished
    table = pq.read_table(folder / "runs" / f"{rows[2]['run_key']}.parquet").drop_columns(["mia_loss_auc", "engine"])
    store.create(tmp_path)
    pq.write_table(table, tmp_path / "runs" / f"{rows[2]['run_key']}.parquet")
    row = store.read_run(tmp_path, rows[2]["run_key"])
    assert row is not None
    assert (row["mia_loss_auc"], row["engine"], row["model_utility"]) == (None, None, rows[2]["model_utility"])
    assert store.scan_runs(tmp_path)["mia_loss_auc"].to_list() == [None]


def test_membership_is_seen_in_the_target_and_not_in_the_retain_model(finished: Any) -> None:
    """Memorised against never seen: every attack is nearly sure; on the retain model none is, and privleak is 0."""
    retain_model, target, *_ = finished[1]
    for name in ("mia_loss_auc", "mia_zlib_auc", "mia_min_k_auc", "mia_min_k_plus_auc"):
        assert target[name] > 0.95
        assert 0.1 < retain_model[name] < 0.9
    assert target["privleak"] < -80
    assert retain_model["privleak"] == 0.0
    assert target["forget_extraction_strength"] > 0.8
    assert target["forget_exact_memorization"] > 0.95
    assert retain_model["forget_extraction_strength"] < 0.5
