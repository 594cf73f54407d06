"""The table of seeds: any benchmark's headlines, the method that forgets most first, what is missing said."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench.config import RunConfig, run_config
from bench.reports.comparison import compare
from bench.reports.table import Best, methods_table, repeated
from bench.results import store
from bench.results.columns import RUNS_SCHEMA, item_row
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.runs.related import prerequisite
from bench.runs.rows import config_columns
from bench.spaces.search_space import SweepConfig
from bench.studies import seeds
from bench.studies.pool import Pool
from bench.studies.seeds import write_table


def _row(method: str, **columns: Any) -> dict[str, Any]:
    return dict.fromkeys(RUNS_SCHEMA.names) | {"method": method, "trainable_parameters": 1000} | columns


def _table(file: Path, rows: list[dict[str, Any]]) -> list[list[str]]:
    write_table(location(file), rows, "grun-bench seeds")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in file.read_text().splitlines()[4:]]


def test_a_benchmark_of_choices(tmp_path: Path) -> None:
    """Accuracies 0.3 and 0.5: mean 0.4, deviation 0.141; the method with 0.3 left stands above it."""
    rows = [
        _row("full+rmu", wmdp_bio_accuracy=0.3, mmlu_accuracy=0.6),
        _row("full+rmu", wmdp_bio_accuracy=0.5, mmlu_accuracy=0.6),
        _row("grun+rmu", wmdp_bio_accuracy=0.3, mmlu_accuracy=0.7),
        _row("target_model", wmdp_bio_accuracy=0.8, mmlu_accuracy=0.7),
    ]
    heading, _, *lines = _table(tmp_path / "seeds.md", rows)
    assert heading == ["method", "seeds", "wmdp bio accuracy", "mmlu accuracy", "trainable"]
    assert [line[0] for line in lines] == ["target_model", "grun+rmu", "full+rmu"]
    assert lines[2][2:4] == ["0.400 ± 0.141", "0.600 ± 0.000"]


def test_a_missing_value_is_said(tmp_path: Path) -> None:
    """One of three seeds has no value: the mean of the other two is not passed off as that of all."""
    values = (0.25, None, 0.75)
    rows = [_row("lora+npo", forget_rouge_l_recall=0.1, forget_relearned_rouge_l_recall=value) for value in values]
    heading, _, line = _table(tmp_path / "seeds.md", rows)
    assert line[heading.index("forget relearned ROUGE-L")] == "0.500 ± 0.354 (2 of 3)"


def test_what_an_earlier_call_chose_is_in_no_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rank 1 forgets most, rank 2 has the best quality: two calls, two seeds each, one folder; each has its own two."""
    made: list[RunConfig] = []

    def write(config: RunConfig, folder: Any, **scores: float) -> None:
        finished = {"status": "ok", "created_at": datetime(2026, 1, 1, tzinfo=UTC), "model_utility": 0.9}
        store.write_run(folder, config_columns(config) | finished | scores, [])

    def sweep(studies: Sequence[SweepConfig], execution: Execution, *_: object) -> None:
        for config in (study.run(point) for study in studies for point in study.initial_points):
            made.append(config)
            write(config, execution.results)

    monkeypatch.setattr(seeds, "sweep", sweep)
    for rank, left, quality in ((1, 0.1, -2.0), (2, 0.2, -1.0)):
        config = run_config({"adapter": {"name": "grun", "rank": rank}, "forget_loss": "npo"})
        write(config, tmp_path, forget_rouge_l_recall=left, log10_forget_quality=quality)
    target = prerequisite(run_config({}), "target_model")
    write(target, tmp_path, forget_rouge_l_recall=1.0, log10_forget_quality=-4.0)
    execution = Execution(results=location(tmp_path))
    asked: list[tuple[Best, int]] = [("rouge_l", 1), ("quality", 2)]
    for best, rank in asked:
        rows = seeds.repeat_best(compare(tmp_path), best, 2, execution, Pool(), print)
        assert {(row["rank"], row["seed"]) for row in rows} == {(rank, 0), (rank, 1)}
    assert len(made) == 4


def test_what_was_attacked_already_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that attacks in its own way: the best run's row, of seed 0, and the target's stand among the seeds as
    they are, and seed 1 is attacked likewise; LoRA's, which nobody attacked, has to be made."""
    before: list[set[str]] = []

    def sweep(studies: Sequence[SweepConfig], execution: Execution, *_: object) -> None:
        before.append({file.name.removesuffix(".parquet") for file in (execution.folder / "runs").files(".parquet")})
        for config in (study.run(point) for study in studies for point in study.initial_points):
            if store.read_run(execution.results, config.run_key) is None:
                write(config, execution.results, 0.3)

    def write(config: RunConfig, folder: Any, left: float) -> None:
        finished = {"status": "ok", "created_at": datetime(2026, 1, 1, tzinfo=UTC), "model_utility": 0.9}
        scores = {"forget_rouge_l_recall": left, "log10_forget_quality": -2.0}
        store.write_run(folder, config_columns(config) | finished | scores, [item_row(split="forget", item_index=0)])

    monkeypatch.setattr(seeds, "sweep", sweep)
    attacks = {"evaluation": {"robustness": {"relearn_steps": 2}}, "forget_loss": "npo"}
    attacked, plain = run_config({"adapter": "grun", **attacks}), run_config({"adapter": "lora", "forget_loss": "npo"})
    target = prerequisite(attacked, "target_model")
    for config, left in ((attacked, 0.1), (plain, 0.2), (target, 1.0)):
        write(config, tmp_path, left)
    rows = seeds.repeat_best(compare(tmp_path), "rouge_l", 2, Execution(results=location(tmp_path)), Pool(), print)
    assert before == [{attacked.run_key, target.run_key}]
    left = {(row["method"], row["seed"]): row["forget_rouge_l_recall"] for row in rows}
    assert left[("grun+npo", 0)] == 0.1
    assert left[("grun+npo", 1)] == left[("lora+npo", 0)] == 0.3
    repeated_at = run_config({**attacked.to_dict(), "seed": 1}).run_key
    assert repeated_at in {row["run_key"] for row in rows}
    taken = store.read_run(tmp_path / store.SEEDS, attacked.run_key)
    assert taken is not None
    assert taken["study"] == f"seeds/{attacked.run_key}/2"


def test_the_table_of_a_folder_that_keeps_rows_alone(tmp_path: Path) -> None:
    """LoRA's best run, not its other one, was repeated with two seeds that leave 0.3 and 0.5: 0.4, and GRUN's was not:
    its 0.2 as it is, without attacks. The target is the one that was attacked too, beside the repetitions."""
    other = run_config({"adapter": "lora", "forget_loss": "npo", "seed": 7})
    best = run_config({"adapter": "lora", "forget_loss": "npo"})
    grun = run_config({"adapter": "grun", "forget_loss": "npo"})
    target = prerequisite(best, "target_model")
    again = [run_config({"adapter": "lora", "forget_loss": "npo", "seed": seed}) for seed in (1, 2)]
    written: list[tuple[RunConfig, float, str | None, Path]] = [
        (target, 1.0, None, tmp_path),
        (other, 0.7, "lora", tmp_path),
        (best, 0.35, "lora", tmp_path),
        (grun, 0.2, "grun", tmp_path),
        (target, 1.0, None, tmp_path / store.SEEDS),
        (again[0], 0.3, f"seeds/{best.run_key}/2", tmp_path / store.SEEDS),
        (again[1], 0.5, f"seeds/{best.run_key}/2", tmp_path / store.SEEDS),
        (other, 0.9, f"seeds/{other.run_key}/1", tmp_path / store.SEEDS),
    ]
    for config, left, study, folder in written:
        row = {"status": "ok", "created_at": datetime(2026, 1, 1, tzinfo=UTC), "model_utility": 0.9, "study": study}
        relearned = {"forget_relearned_rouge_l_recall": 0.95} if folder != tmp_path else {}
        scores = {"forget_rouge_l_recall": left, "log10_forget_quality": -1.0}
        store.write_run(folder, config_columns(config) | row | scores | relearned)
    heading, _, *lines = methods_table(repeated(compare(tmp_path), location(tmp_path)))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, *lines)]
    left, relearned_at = cells[0].index("forget ROUGE-L"), cells[0].index("forget relearned ROUGE-L")
    assert [(each[0], each[1], each[left], each[relearned_at]) for each in cells[1:]] == [
        ("target_model", "1", "1.000", "0.950"),
        ("grun+npo", "1", "0.200", ""),
        ("lora+npo", "2", "0.400 ± 0.141", "0.950 ± 0.000"),
    ]
