"""Data and models by what is in them: the same content elsewhere is the same setting, an edited file is another one."""

import dataclasses
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from bench import content
from bench.benchmarks import LocalBenchmark
from bench.cli.main import main
from bench.cli.options import split_settings
from bench.config import RunConfig, overlay, run_config, stored_config
from bench.content import model_digest
from bench.files import write_yaml
from bench.models import prepare
from bench.reports.comparison import compare, write_front_configs
from bench.results import store
from bench.results.requests import scan_requests, write_choice, write_requests
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.runs.related import prerequisites
from bench.runs.subject import Subject
from bench.sequential.request import RequestSequence
from bench.spaces.search_space import SweepConfig, differences
from bench.studies.rescore import rescore
from grun.errors import UserError

KINDS = get_args(LocalBenchmark)


def _of(folder: str | Path, **changes: Any) -> RunConfig:
    return run_config(overlay({}, {"benchmark": "questions", "benchmark.data_dir": str(folder), **changes}))


@pytest.fixture
def data(questions_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(questions_dir, tmp_path / "data"))


def _edit(file: Path) -> None:
    """An answer of as many letters, at the same size and a moment later."""
    text = file.read_text()
    file.write_text(text.replace("carries a saw.", "carries a fig."))
    assert file.read_text() != text


def test_one_folder_is_one_setting_however_it_is_written(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data.parent))
    monkeypatch.chdir(data.parent)
    written = ["data", "./data", "~/data", "../" + data.parent.name + "/data/", str(data)]
    configs = [_of(each) for each in written]
    assert {config.to_json() for config in configs} == {_of(data).to_json()}
    assert configs[0].benchmark.data_dir == str(data)  # type: ignore[union-attr]


@pytest.mark.parametrize("folder", [".", "..", "./"])
def test_a_folder_is_no_list(folder: str) -> None:
    """`.` was read as numbers with commas between them."""
    assert split_settings(["--benchmark.data-dir", folder, "--adapter.layers", "2,3.5"]) == (
        [],
        {"benchmark.data_dir": folder, "adapter.layers": [2, 3.5]},
    )


def test_keys_follow_what_is_read(data: Path, tmp_path: Path) -> None:
    """The same files elsewhere are the same run; an edited answer is another; a file that is not read is none."""
    before = _of(data)
    elsewhere = _of(shutil.copytree(data, tmp_path / "elsewhere"))
    assert (elsewhere.run_key, elsewhere.train_key) == (before.run_key, before.train_key)
    (data / "notes.json").write_text("[]")
    assert _of(data).run_key == before.run_key
    _edit(data / "forget.json")
    after = _of(data)
    assert len({before.run_key, after.run_key, before.train_key, after.train_key}) == 4
    assert not {run.run_key for run in prerequisites(before)} & {run.run_key for run in prerequisites(after)}
    (data / "holdout.json").write_text((data / "retain.json").read_text())
    assert _of(data).run_key != after.run_key, "a part that need not be there"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_parts_are_what_is_read(kind: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(request.getfixturevalue(f"{kind.name}_dir"))
    config, read, read_bytes = kind(data_dir=str(folder)), set(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.add(file) or read_bytes(file))
    config.load()
    parts = [folder / f"{part}.json" for part in config.parts]
    assert read == {file for file in parts if file.exists()}
    assert len(read) >= 2


def test_keys_of_what_is_not_local_stay(data: Path) -> None:
    """Rows of before: a path without what it holds has the key it had, and is nobody else's."""
    old = overlay({}, {"benchmark": "questions", "benchmark.data_dir": str(data)})
    assert "data_dir_digest" not in stored_config(old).to_dict()["benchmark"]
    assert stored_config(old).run_key != run_config(old).run_key
    hub = run_config({"model": "gpt2"})
    assert hub.to_dict()["model"].keys() == {"name", "retain_model", "fine_tuning"}


def test_what_was_known_stays_known(data: Path) -> None:
    """A config that was written down keeps its key after the data were edited; with the folder named anew it is new."""
    written = json.loads(_of(data).to_json())
    _edit(data / "forget.json")
    assert json.loads(run_config(written).to_json()) == written
    anew = run_config(overlay(written, {"benchmark.data_dir": str(data)}))
    assert anew.run_key == _of(data).run_key != run_config(written).run_key


def test_a_run_on_other_data_than_it_is_named_by_is_refused(data: Path, tmp_path: Path) -> None:
    """The driver looked, then the file changed; or a node has another one there."""
    subject = Subject(config=_of(data), execution=Execution(results=tmp_path / "results"))
    assert len(subject.benchmark.forget_set) == 5
    _edit(data / "forget.json")
    with pytest.raises(UserError, match=r"^benchmark\.data_dir: .*/data holds something else than this run"):
        _ = dataclasses.replace(subject).benchmark
    sequence = RequestSequence(study="s", config=subject.config, num_requests=None, extra_requests=(), variants=())
    with pytest.raises(UserError, match=r"^benchmark\.data_dir: "):
        sequence.requests()


def _checkpoint(folder: Path, scale: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    weights = torch.arange(64.0).reshape(8, 8)
    save_file({"a": weights, "norm": torch.ones(8) * scale}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize("whole_bytes", [content.WHOLE_BYTES, 0], ids=["whole", "sampled"])
@pytest.mark.parametrize("field", ["name", "retain_model"])
def test_a_model_is_its_weights(field: str, whole_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, with another README, and written anew it is the same; with one of two tensors changed another."""
    monkeypatch.setattr(content, "WHOLE_BYTES", whole_bytes)
    content._digest.cache_clear()

    def config(folder: Path) -> RunConfig:
        return run_config(overlay({"model": "gpt2"}, {f"model.{field}": str(folder)}))

    first, second = (_checkpoint(tmp_path / name) for name in ("first", "there/second"))
    (second / "README.md").write_text("a copy")
    os.utime(second / "model.safetensors", (1, 1))
    other = _checkpoint(tmp_path / "other", scale=2.0)
    assert config(first).run_key == config(second).run_key != config(other).run_key
    monkeypatch.chdir(tmp_path)
    assert config(Path("first")).to_json() == config(first).to_json()
    (first / "tokenizer.json").write_text("{}")
    assert config(first).run_key != config(second).run_key
    content._digest.cache_clear()


def test_a_gguf_file_and_what_peft_trained(tmp_path: Path) -> None:
    """A file is its content; a PEFT checkpoint also its base's, where that is local."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    names = [run_config({"model": str(tmp_path / f"{name}.gguf")}) for name in "ab"]
    assert len({each.run_key for each in names}) == 1
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + bytes(99) + b"1")
    assert run_config({"model": str(tmp_path / "b.gguf")}).run_key != names[0].run_key
    base, adapter = _checkpoint(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    save_file({"lora": torch.ones(2)}, str(adapter / "adapter_model.safetensors"))
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_digest(adapter)
    save_file({"a": torch.zeros(8, 8)}, str(base / "model.safetensors"))
    assert model_digest(adapter) != before


def test_a_large_file_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 300 samples of a file of 1 GB, and none when it is asked for again; a change to a sampled byte is seen."""
    file, looked = tmp_path / "big.bin", []
    with file.open("wb") as out:
        out.truncate(2**30)
    os.utime(file, (1, 1))
    samples = content._samples
    monkeypatch.setattr(content, "_samples", lambda *words: looked.append(words) or samples(*words))
    first = [model_digest(tmp_path) for _ in range(3)]
    assert len(looked) == 1
    with file.open("r+b") as out:
        out.seek(2**29)
        out.write(b"1")
    assert [model_digest(tmp_path) for _ in range(3)] != first
    assert first[0] == first[1] == first[2]


def test_a_damaged_model_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "WHOLE_BYTES", 0)
    (tmp_path / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0nothing")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read") as error:
        run_config({"model": str(tmp_path)})
    assert "\n" not in str(error.value)


def test_the_same_weights_elsewhere_are_prepared_once(
    small_benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of what is prepared is named by the weights it is made of."""
    monkeypatch.setattr(prepare, "prepared_once", lambda name, build, workers: name)
    first, second = _checkpoint(tmp_path / "first"), _checkpoint(tmp_path / "second")
    other = _checkpoint(tmp_path / "other", scale=2.0)
    made = [
        prepare.prepared_model(run_config({"model": str(each)}).model, small_benchmark, "target_model")
        for each in (first, second, other)
    ]
    assert made[0] == made[1] != made[2]


def _finished(folder: Path, config: RunConfig, method: str = "", **scores: float) -> None:
    own = {"run_key": config.run_key, "train_key": config.train_key, "config_json": config.to_json()}
    trained = {"trainable_parameters": 1, "train_seconds": 1.0, "created_at": datetime.now(UTC)}
    row = {"status": "ok", "method": method or config.method, "adapter": config.adapter.name, **own, **trained}
    names = {"benchmark": config.benchmark.name, "forget_split": "forget", "model": config.model.name}
    items = [{"split": "forget", "item_index": 0, "question": "q", "answer": "a", "generation": "a"}]
    store.write_run(folder, row | names | scores, items)


SCORES = {"log10_forget_quality": -1.0, "partial_model_utility": 0.5, "forget_rouge_l_recall": 0.2}


def test_what_was_measured_on_other_data_shares_no_front(data: Path, tmp_path: Path) -> None:
    """One line says what differs and how to choose; the same data elsewhere do share it."""
    results, before = tmp_path / "results", _of(data)
    _finished(results, before, **SCORES)
    _finished(results, _of(shutil.copytree(data, tmp_path / "moved"), seed=1), **SCORES)
    assert len(compare(results).runs) == 2
    _edit(data / "forget.json")
    after = _of(data)
    _finished(results, after, **SCORES)
    found = [config.benchmark.data_dir_digest for config in (before, after)]  # type: ignore[union-attr]
    with pytest.raises(UserError, match=rf"do not compare \(benchmark\.data_dir_digest={found[0]} or {found[1]}\)"):
        compare(results)
    chosen = compare(results, where={"benchmark.data_dir_digest": str(found[1])})
    assert [row["run_key"] for row in chosen.runs] == [after.run_key]


def test_rows_of_before_are_shown_and_are_nobody_elses(data: Path, tmp_path: Path) -> None:
    """Rows named by a path: read, rescored against their own retain model, and not beside those of today."""
    results = tmp_path / "results"
    settings = overlay({}, {"benchmark": "questions", "benchmark.data_dir": str(data)})
    old = stored_config(settings)
    _finished(results, old, **SCORES)
    for run in (
        stored_config(overlay(each.to_dict(), {"benchmark.data_dir": str(data)})) for each in prerequisites(old)
    ):
        _finished(results, run)
    assert compare(results).runs[0]["run_key"] == old.run_key
    _finished(results, run_config(settings), **SCORES)
    with pytest.raises(UserError, match=r"benchmark\.data_dir=.*/data or null, benchmark\.data_dir_digest=null or "):
        compare(results)
    assert len(compare(results, where={"benchmark.data_dir_digest": "null"}).runs) == 1
    assert rescore(results) == (4, 0)


def test_a_front_runs_from_anywhere(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for a relative path names the folder in full."""
    import yaml

    monkeypatch.chdir(data.parent)
    config = _of("data")
    _finished(tmp_path / "results", config, **SCORES)
    (file,) = write_front_configs(compare(tmp_path / "results"), location(tmp_path / "front")).values()
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    assert run_config(yaml.safe_load(file.read())).run_key == config.run_key


def test_a_study_goes_on_with_the_same_data_only(data: Path, tmp_path: Path) -> None:
    """Elsewhere it does; edited, or begun when data went by their path, what differs is said."""

    def defined(folder: Path) -> dict[str, Any]:
        base = {"benchmark": {"name": "questions", "data_dir": str(folder)}}
        return SweepConfig(study="s", base=base, search_space={}).definition()

    before = defined(data)
    assert differences(before, defined(shutil.copytree(data, tmp_path / "moved"))) == ""
    known = before["base"]["benchmark"]["data_dir_digest"]
    _edit(data / "forget.json")
    assert differences(before, defined(data)).startswith(f'benchmark.data_dir_digest "{known}", not "')
    del before["base"]["benchmark"]["data_dir_digest"]
    assert differences(before, defined(data)).startswith(f'benchmark.data_dir "{data}", not null; ')


def test_a_sequence_is_found_from_the_same_data_elsewhere(data: Path, tmp_path: Path) -> None:
    """Its states were written from one place, and its choice from another."""
    first, moved = _of(data), _of(shutil.copytree(data, tmp_path / "moved"))
    row = {"study": "s", "config_json": first.to_json(), "request_index": 1, "evaluated_index": 1}
    write_requests(tmp_path / "results", "key", [row | {"created_at": datetime.now(UTC)}])
    write_choice(tmp_path / "results", "s", moved.to_json(), None, None)
    assert scan_requests(tmp_path / "results")["run_key"].to_list() == ["key"]
    assert scan_requests(tmp_path / "results", [moved.to_json()]).height == 1
    _edit(data / "forget.json")
    with pytest.raises(UserError, match="no tuned sequence"):
        scan_requests(tmp_path / "results", [_of(data).to_json()])


def _module(results: Path, config: RunConfig) -> Path:
    """The folder of a finished training, without its weights."""
    folder = results / "modules" / config.train_key
    write_yaml(folder / "run.yaml", config.to_dict())
    (folder / "training.json").write_text("{}")
    return folder


def test_a_module_is_asked_only_what_it_was_trained_beside(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one named by a path nobody knows what it was trained on; another's data were edited since: one line each."""
    settings = overlay({}, {"benchmark": "questions", "benchmark.data_dir": str(data)})
    by_path, known = (_module(tmp_path, config) for config in (stored_config(settings), run_config(settings)))
    _edit(data / "forget.json")
    for module, line in ((by_path, "MODULE: was named by a path, so"), (known, f"benchmark.data_dir: {data} holds")):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(module), "--evaluation.max_new_tokens", "9"])
        said = capsys.readouterr().err
        assert (stop.value.code, said.count("\n"), line in said) == (2, 1, True), said
