"""The table of seeds: any benchmark's headlines, the method that forgets most first, what is missing said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.results.columns import RUNS_SCHEMA
from bench.results.storage import location
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
