"""Write-once rows that survive whatever happens to the files."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench.results import store
from bench.results.columns import ITEMS_SCHEMA, RUNS_SCHEMA
from grun.errors import UserError


def _run(key: str, **columns: Any) -> dict[str, Any]:
    return {"run_key": key, "status": "ok", "method": "grun+npo", "created_at": datetime.now(UTC), **columns}


ITEM = {"split": "forget", "item_index": 0, "question": "q", "answer": "a", "wrong_nll": [1.0], "gate": [0.5, 0.25]}


def test_a_row_written_twice_is_one_row(tmp_path: Path) -> None:
    store.create(tmp_path)
    store.write_run(tmp_path, _run("a", forget_quality=0.1), [ITEM])
    store.write_run(tmp_path, _run("a", forget_quality=0.2), [ITEM, {**ITEM, "item_index": 1}])
    assert store.scan_runs(tmp_path)["forget_quality"].to_list() == [0.2]
    items = store.scan_items(tmp_path, ["a"])
    assert items["item_index"].to_list() == [0, 1]
    assert items["gate"].to_list() == [[0.5, 0.25]] * 2


def test_a_finished_run_replaces_a_failed_one(tmp_path: Path) -> None:
    store.create(tmp_path)
    store.write_run(tmp_path, _run("a", status="failed", error="no luck"))
    assert store.read_run(tmp_path, "a") is None, "a failed run is tried again"
    assert store.scan_runs(tmp_path)["forget_quality"].to_list() == [None]
    store.write_run(tmp_path, _run("a"), [ITEM])
    assert store.read_run(tmp_path, "a") is not None
    assert store.scan_runs(tmp_path).height == 1


def test_damaged_and_half_written_files_are_left_out(tmp_path: Path) -> None:
    store.create(tmp_path)
    for key in ("a", "b"):
        store.write_run(tmp_path, _run(key), [ITEM])
    damaged = tmp_path / "runs" / "b.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (tmp_path / "runs" / ".tmp-1-c.parquet").write_bytes(b"half")
    assert store.scan_runs(tmp_path)["run_key"].to_list() == ["a"]
    assert [file.local for file in store.damaged_files(tmp_path)] == [damaged]
    assert store.read_run(tmp_path, "b") is None


def test_nothing_is_left_behind_by_a_failed_write(tmp_path: Path) -> None:
    store.create(tmp_path)
    with pytest.raises(ValueError, match="no column colour"):
        store.write_run(tmp_path, _run("a", colour="red"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_files_carry_the_schema(tmp_path: Path) -> None:
    """Null columns keep their type, so files of different adapters read as one table."""
    store.create(tmp_path)
    store.write_run(tmp_path, _run("a"), [ITEM])
    assert pq.read_schema(tmp_path / "runs" / "a.parquet").equals(RUNS_SCHEMA)
    assert pq.read_schema(tmp_path / "items" / "a.parquet").equals(ITEMS_SCHEMA)


def test_losses_are_one_row_a_training(tmp_path: Path) -> None:
    """Two steps of (total, forget, retain, gate), as lists of each; written again and compacted, still one row."""
    assert store.scan_losses(tmp_path).height == 0, "a folder of before"
    store.write_losses(tmp_path, "nothing-to-train", ())
    store.write_losses(tmp_path, "a", [(9.0, 9.0, 9.0, 9.0)])
    store.compact(tmp_path)
    store.write_losses(tmp_path, "a", [(4.5, 1.0, 2.0, 0.5), (3.5, 0.5, 1.5, 0.25)])
    expected = {"train_key": "a", "total": [4.5, 3.5], "forget": [1.0, 0.5], "retain": [2.0, 1.5], "gate": [0.5, 0.25]}
    assert store.scan_losses(tmp_path).to_dicts() == [expected]
    store.compact(tmp_path)
    assert store.scan_losses(tmp_path).to_dicts() == [expected]
    assert len(list((tmp_path / "losses").iterdir())) == 2


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no runs"):
        store.scan_runs(tmp_path / "nowhere")
