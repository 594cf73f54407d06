"""The results folder in an object store: a real S3 server on loopback (moto's), written, read, compacted, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.cli.main import main
from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.models.cache import cache_dir
from bench.models.prepare import prepared_model
from bench.results import store
from bench.results.columns import ITEMS_SCHEMA, METRICS, RUNS_SCHEMA
from bench.results.storage import Location, location
from bench.runs.execution import Execution
from bench.runs.run import run
from grun.errors import Damaged, UserError

BUCKET = "s3://bench"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def s3(s3_environment: str) -> Iterator[str]:
    """A bucket at the place that the environment leads to."""
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", s3_environment],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        import boto3

        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                boto3.client("s3").create_bucket(Bucket="bench")
                break
            except Exception:
                assert server.poll() is None, "the server died"
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield BUCKET
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A fresh folder of each kind."""
    if request.param == "disk":
        return location(tmp_path / "results")
    return location(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def _row(key: str, **columns: Any) -> dict[str, Any]:
    return {"run_key": key, "status": "ok", "method": "grun+npo", "created_at": datetime.now(UTC), **columns}


def test_files_come_back_as_they_were(folder: Location) -> None:
    file = folder / "a" / "b.bin"
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.read()
    for content in (b"", b"x" * 10_000_000, b"short"):
        file.write(content)
        assert file.read() == content
    (folder / "a" / ".hidden").write(b"")
    assert [each.name for each in (folder / "a").files()] == ["b.bin"]
    assert (folder / "a").files(".txt") == (folder / "nowhere").files() == []
    file.remove()
    file.remove()
    assert not file.exists()


def test_a_folder_is_written_with_its_last_file_last(folder: Location) -> None:
    place = folder / "module"
    for number in (1, 2):
        with place.written_folder(last="done.json") as scratch:
            (scratch / "done.json").write_text(str(number))
            (scratch / "weights").write_bytes(b"w" * number)
    with place.read_folder() as local:
        content = {file.name: file.read_bytes() for file in local.iterdir()}
    assert content.pop("SHA256SUMS").decode().split() == [
        # printf ww | sha256sum, printf 2 | sha256sum
        *("b84ff8057ee3a7f87deac4ae29ac59292f02e6c28f987031648011018384d888", "weights"),
        *("d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35", "done.json"),
    ]
    assert content == {"done.json": b"2", "weights": b"ww"}
    place.remove()
    assert place.files() == []


def test_a_folder_whose_filling_failed_is_not_there(folder: Location) -> None:
    def fill() -> None:
        with (folder / "module").written_folder(last="done.json") as scratch:
            (scratch / "done.json").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert (folder / "module").files() == []


@pytest.mark.parametrize(("name", "content"), [("weights", b"wv"), ("weights", None), ("done.json", b"{")])
def test_a_damaged_folder_is_said_and_set_aside(folder: Location, name: str, content: bytes | None) -> None:
    """One byte other than written, or a file missing; set aside twice, each time under a name of its own."""
    place = folder / "module"
    for number in (1, 2):
        with place.written_folder(last="done.json") as scratch:
            (scratch / "weights").write_bytes(b"ww")
            (scratch / "done.json").write_text("{}")
        if content is None:
            (place / name).remove()
        else:
            (place / name).write(content)
        with pytest.raises(Damaged, match=rf"module: is damaged \({name} is"), place.read_folder():
            pass
        kept = {file.name: file.read() for file in place.files()}
        aside = place.set_aside()
        assert aside.name == f"module.damaged-{number}"
        assert {file.name: file.read() for file in aside.files()} == kept
        assert place.files() == []


def test_a_bucket_that_cannot_be_reached_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that may well be there is not done again: one line, from each way of asking."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    place = "s3://out-of-reach/r"
    for ask in (store.read_run, store.read_items):
        with pytest.raises(UserError, match=r"^s3://out-of-reach/r/\w+/key.parquet: cannot be reached \(") as error:
            ask(place, "key")
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="cannot be reached"):
        store.scan_runs(place)
    with pytest.raises(UserError, match=r"^--results: s3://out-of-reach/r cannot be written \((?!cannot be reached)"):
        store.create(place)


def test_a_file_that_cannot_be_read_is_not_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose disk hesitates is neither lost nor damaged, and is there again afterwards."""
    store.create(tmp_path)
    store.write_run(tmp_path, _row("key"))

    def fail(*arguments: Any, **settings: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(store.pq, "read_table", fail)
        patch.setattr(Location, "read", fail)
        for ask in (lambda: store.read_run(tmp_path, "key"), lambda: store.scan_runs(tmp_path)):
            with pytest.raises(OSError, match="Input/output error"):
                ask()
    assert store.read_run(tmp_path, "key") is not None
    (tmp_path / "runs" / "key.parquet").write_bytes(b"PAR1 and then nothing")
    assert store.read_run(tmp_path, "key") is None, "this one is damaged"


def test_rows_are_written_read_and_compacted(folder: Location) -> None:
    """Compacting changes no row; a run written again afterwards, or compacted twice, counts once and is the newer."""
    store.create(folder)
    item = {"split": "forget", "item_index": 0, "question": "q", "answer": "a", "wrong_nll": [1.0], "gate": [0.5]}
    for number in range(7):
        store.write_run(folder, _row(f"{number}", forget_quality=number / 10), [{**item, "item_index": number}] * 2)
    (folder / "runs" / "broken.parquet").write(b"PAR1 and then nothing")
    before, items = store.scan_runs(folder), store.scan_items(folder, ["3", "5"])
    assert store.compact(folder) == (7 + 7, 1), "of runs, and of items"
    assert store.scan_runs(folder).equals(before)
    assert store.scan_items(folder, ["3", "5"]).equals(items)
    assert [file.name.startswith("compact-") for file in (folder / "runs").files()] == [False, True]
    store.write_run(folder, _row("3", forget_quality=0.9), [item])
    for _ in range(2):
        found = store.read_run(folder, "3")
        assert found is not None
        assert found["forget_quality"] == 0.9
        assert store.read_items(folder, "3") == [dict.fromkeys(ITEMS_SCHEMA.names) | {"run_key": "3"} | item]
        runs = store.scan_runs(folder)
        assert sorted(runs["run_key"].to_list()) == [f"{number}" for number in range(7)]
        assert runs.filter(run_key="3")["forget_quality"].to_list() == [0.9]
        store.compact(folder)
    assert store.read_run(folder, "8") is None


def test_readers_and_writers_do_not_mind_each_other(folder: Location) -> None:
    """Four writers, a compaction over and over, and a reader that never sees a row twice or a damaged file."""
    store.create(folder)
    store.write_run(folder, _row("first"))
    writing = [
        threading.Thread(target=lambda w=w: [store.write_run(folder, _row(f"{w}-{n}")) for n in range(12)])  # type: ignore[misc]
        for w in range(4)
    ]
    for thread in writing:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in writing):
        keys = store.scan_runs(folder)["run_key"].to_list()
        assert len(keys) == len(set(keys)) >= seen
        seen = len(keys)
        assert store.damaged_files(folder) == []
        store.compact(folder)
    assert store.scan_runs(folder).height == 49


def test_compacting_costs_no_more_than_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each run by itself, however many there are: what is taken up for a file must not look at those before it."""
    monkeypatch.setattr(store, "COMPACT_RUNS", 120)
    store.create(tmp_path)
    for number in range(200):
        store.write_run(tmp_path, _row(f"{number}", **dict.fromkeys(METRICS, 0.5)))
    before = store.scan_runs(tmp_path)
    started = time.process_time()
    assert all(store.rows_of(location(tmp_path), "runs", f"{number}") for number in range(50))
    read = time.process_time()
    assert store.compact(tmp_path) == (200, 0)
    assert time.process_time() - read < 3 * 4 * (read - started), "200 runs; reading is of 50"
    assert store.scan_runs(tmp_path).equals(before)
    assert len(location(tmp_path / "runs").files()) == 2, "120 runs in the first, 80 in the other"


def test_ten_thousand_rows_are_read_in_a_second(tmp_path: Path) -> None:
    """Of CPU, as `compact` leaves them, all columns; and one of ten thousand is found."""
    store.create(tmp_path)
    row = _row("", config_json=json.dumps({"a": 1}), **dict.fromkeys(METRICS, 0.5))
    table = pa.Table.from_pylist([{**row, "run_key": f"{n:05d}"} for n in range(10_000)], schema=RUNS_SCHEMA)
    pq.write_table(table, tmp_path / "runs" / "compact-1-1.parquet")
    started = time.process_time()
    runs = store.scan_runs(tmp_path)
    assert time.process_time() - started < 1.0
    assert runs.height == 10_000
    found = store.read_run(tmp_path, "04567")
    assert found is not None
    assert found["run_key"] == "04567"


def _copy_rows(folder: Path, there: str) -> None:
    """From a disk into an object store."""
    for table in ("runs", "items"):
        for file in (folder / table).glob("*.parquet"):
            (location(there) / table / file.name).write(file.read_bytes())


def test_a_run_its_module_and_its_front_in_s3(
    s3: str, small_config: RunConfig, small_results: Path, assert_same_metrics: Any, capsys: Any
) -> None:
    """The same rows as on a disk; evaluated again from its module; front, page and picture beside them."""
    there = Execution(results=f"{s3}/run")
    _copy_rows(small_results, f"{s3}/run")
    (row,) = run(small_config, there)
    (local,) = run(small_config, Execution(results=small_results))
    assert_same_metrics(row, local)
    main(["evaluate", f"{s3}/run/modules/{row['train_key']}", "--gate-thresholds", "0.5"])
    assert store.scan_runs(f"{s3}/run").filter(adapter="grun")["gate_threshold"].sort().to_list() == [0.0, 0.5]
    main(["pareto", f"{s3}/run"])
    main(["report", f"{s3}/run"])
    place = location(f"{s3}/run")
    assert (place / "report.html").read().startswith(b"<!doctype html>")
    assert (place / "fronts.png").read().startswith(b"\x89PNG")
    assert (place / "front").files(".yaml")
    main(["rescore", f"{s3}/run"])
    assert "4 runs rescored" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_address")
def test_a_sweep_in_s3_goes_on(
    s3: str,
    small_config: RunConfig,
    small_prerequisites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its study too is kept there: from another cache the same command finds what is done."""
    space = {
        "study": "s",
        "base": small_config.to_dict(),
        "search_space": {"adapter.learning_rate": {"type": "float", "low": 0.005, "high": 0.02, "log": True}},
    }
    write_yaml(tmp_path / "s.yaml", space)
    _copy_rows(small_prerequisites, f"{s3}/sweep")
    models = cache_dir() / "models"
    for trials in ("1", "2"):
        monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / trials))
        (tmp_path / trials).mkdir()
        (tmp_path / trials / "models").symlink_to(models)
        main(["sweep", str(tmp_path / "s.yaml"), "--results", f"{s3}/sweep", "--num-trials", trials])
        request.getfixturevalue("without_ray")  # it has written there from a worker, once is enough
    assert "1 of 2 trainings are done already" in capsys.readouterr().out
    assert store.scan_runs(f"{s3}/sweep").filter(adapter="grun").height == 2


def test_a_model_prepared_on_one_node_is_copied_by_the_next(
    folder: Location, small_config: RunConfig, small_benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes' caches and a shared place: trained once, then the same bytes."""
    model = run_config(overlay(small_config.to_dict(), {"model.fine_tuning.num_epochs": 1})).model
    monkeypatch.setenv("GRUN_BENCH_SHARED", str(folder))
    steps: list[int] = []
    made = []
    for node in ("one", "two"):
        monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / node))
        made.append(
            Path(prepared_model(model, small_benchmark, "target_model", lambda phase, done, total: steps.append(done)))
        )
        assert made[-1].is_relative_to(tmp_path / node)
    assert steps == list(range(1, steps[-1] + 1)), "the second node trained nothing"
    files = [{file.name: file.read_bytes() for file in each.iterdir()} for each in made]
    del files[1]["SHA256SUMS"]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("where", "complaint"), [("ftp://x/y", "ftp:// is not known"), ("s3://no-such-bucket/x", "cannot be written")]
)
def test_what_cannot_be_reached_is_named(s3: str, where: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        store.create(where)
    assert error.value.field == "--results"
