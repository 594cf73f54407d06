"""Models and data of the Hugging Face hub, by its own clients, from a stand-in of it on loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import peft
import polars as pl
import pytest
import safetensors.torch
import torch
import yaml
from hub_stand_in import Hub
from transformers import AutoModelForCausalLM

from bench.models.pretrained import FineTuningConfig, TinyConfig, new_tiny_model
from bench.results import store

Parts = dict[str | None, dict[str, tuple[str, bytes]]]
"""Configuration → split → the file's path and content."""
UNUSED, METADATA = torch.zeros(6_000_000), {"format": "pt"}
"""A download goes on where it broke off once 10 MiB of it are there."""

RUN_ALL = """
import contextlib, glob, io, json, sys, traceback
from bench.cli.main import main

def run(words):
    if words[0] != "load":
        return main(words)
    from grun.unlearned import load
    (folder,) = glob.glob(words[1])
    print(load(folder).generate("Who?", 2))

for words in json.loads(sys.stdin.read()):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(words)
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


class Ended(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def _run(hub: Hub, home: Path, lines: Mapping[str, str], **environment: str) -> dict[str, Ended]:
    """Commands, one after another in one fresh process, which knows the hub and has its own cache of it."""
    env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN")}
    env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "GRUN_BENCH_CACHE": str(home / "grun")} | environment
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps([line.split() for line in lines.values()]),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(lines, ended, strict=True))


def _dataset(configurations: Parts) -> dict[str, bytes]:
    """A data set's files, and the card that says which belong to which configuration and split."""
    files = dict(file for splits in configurations.values() for file in splits.values())
    card = {
        "configs": [
            {"config_name": name, "data_files": [{"split": split, "path": path} for split, (path, _) in splits.items()]}
            for name, splits in configurations.items()
            if name is not None
        ]
    }
    return files | {"README.md": f"---\n{yaml.safe_dump(card)}---\nMade up.\n".encode(), ".gitattributes": b""}


def _parquet(configuration: str, split: str, file: Path) -> dict[str, tuple[str, bytes]]:
    """A split made of the rows in a JSON file."""
    text = file.read_text()
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    out = io.BytesIO()
    pl.DataFrame([{"text": row} if isinstance(row, str) else row for row in rows]).write_parquet(out)
    return {split: (f"{configuration}/{split}-00000-of-00001.parquet", out.getvalue())}


def _wmdp(folder: Path) -> dict[str, Parts]:
    """What WMDP reads, by data set; chemistry asks what biology does."""
    topics = {"wmdp-bio": "wmdp_bio", "wmdp-chem": "wmdp_bio", "wmdp-cyber": "wmdp_cyber"}
    files = {name: folder / f"{name}.json" for name in ("wmdp_bio", "wmdp_cyber", "mmlu", "cyber_forget", "retain")}
    return {
        "cais/wmdp": {topic: _parquet(topic, "test", files[name]) for topic, name in topics.items()},
        "cais/mmlu": {"all": _parquet("all", "test", files["mmlu"])},
        "cais/wmdp-corpora": {
            "cyber-forget-corpus": _parquet("cyber-forget-corpus", "train", files["cyber_forget"]),
        },
        "cais/wmdp-bio-forget-corpus": {
            None: {"train": ("bio_remove_dataset.jsonl", (folder / "bio_forget.json").read_bytes())}
        },
        "Salesforce/wikitext": {"wikitext-2-raw-v1": _parquet("wikitext-2-raw-v1", "train", files["retain"])},
    }


def _tofu(folder: Path, asked: str) -> dict[str, bytes]:
    """TOFU's release with a holdout set; asked: what its world facts ask."""
    parts = {file.stem: file.read_bytes() for file in folder.glob("*.json")}
    parts["holdout01"] = b"\n".join(parts["full"].splitlines()[:40])
    parts["world_facts_perturbed"] = parts["world_facts_perturbed"].replace(b"What is", asked.encode())
    return _dataset({part: {"train": (f"{part}.json", rows)} for part, rows in parts.items()})


def _model(seed: int, folder: Path) -> dict[str, bytes]:
    """A small model of drawn weights with its tokenizer, as transformers writes them."""
    recipe = FineTuningConfig(num_epochs=0, seed=seed)
    tiny = TinyConfig(num_layers=2, hidden_size=32, num_heads=2, vocab_size=320, fine_tuning=recipe)
    for part in new_tiny_model(tiny, ["What is in the box? A red saw. Nobody knows."]):
        part.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _update(target: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """A PEFT checkpoint that is put on `target`, without a tokenizer of its own."""
    for name, content in target.items():
        (folder / name).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.name_or_path = "somebody/target"
    settings = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(folder / "own", save_embedding_layers=False)
    return {file.name: file.read_bytes() for file in (folder / "own").iterdir()}


@pytest.fixture(scope="module")
def hub(
    made_up_tofu_dir: Path, wmdp_dir: Path, muse_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hub]:
    """TOFU, WMDP and MUSE as their authors laid them out, and models; each case has one that is like that."""
    hub = Hub()
    hub.add("datasets/locuslab/TOFU", _tofu(made_up_tofu_dir, "What was"), tag="v1")
    hub.repositories["datasets/locuslab/TOFU"].commit(_tofu(made_up_tofu_dir, "What is"))
    for name, parts in _wmdp(wmdp_dir).items():
        hub.add(f"datasets/{name}", _dataset(parts), gated="bio-forget" in name)
    muse: Parts = {}
    for file in sorted(muse_dir.rglob("*.json")):
        muse.setdefault(file.parent.name, {}).update(_parquet(file.parent.name, file.stem, file))
    news = hub.add("datasets/muse-bench/MUSE-News", _dataset(muse))
    hub.add("datasets/muse-bench/MUSE-Books", {}, renamed="datasets/muse-bench/MUSE-News")
    hub.cut[f"{news}/raw/forget-00000-of-00001.parquet"] = 1
    target, retain, other = (_model(seed, tmp_path_factory.mktemp("model")) for seed in range(3))
    hub.add("models/somebody/target", target)
    hub.add("models/somebody/retain", retain)
    hub.add("models/somebody/update", _update(target, tmp_path_factory.mktemp("update")))
    hub.add("models/somebody/moved", target, tag="v1")
    hub.repositories["models/somebody/moved"].commit(other)
    hub.add("models/somebody/gated", target, gated=True)
    hub.add("models/somebody/old", {}, renamed="models/somebody/target")
    large = safetensors.torch.save(safetensors.torch.load(target["model.safetensors"]) | {"unused": UNUSED}, METADATA)
    for name, times in (("breaks-off-once", 1), ("breaks-off", 6)):
        sha = hub.add(f"models/somebody/{name}", target | {"model.safetensors": large, "of.txt": name.encode()})
        hub.cut[f"{sha}/model.safetensors"] = times
    with hub.serving():
        yield hub


QUICK = "--evaluation.max_items_per_split 2 --evaluation.max_new_tokens 4"
TARGET = "--model.name somebody/target --model.fine_tuning.num_epochs 0"
BOTH = f"{TARGET} --model.retain_model somebody/retain"
TOFU = "--benchmark tofu --benchmark.forget_split forget01 --benchmark.num_items 60"
MUSE = "--benchmark muse"
LORA = "--adapter lora --training.num_epochs 1"
AS_IT_IS = "--adapter none --start_from"
WORKS = {
    "wmdp": f"train {BOTH} --benchmark wmdp --benchmark.forget_split cyber {AS_IT_IS} target_model",
    "muse": f"train {BOTH} {MUSE} {AS_IT_IS} target_model",
    "update": f"evaluate somebody/update --name theirs {BOTH} {MUSE}",
    "taught": "train --model.name somebody/target --model.fine_tuning.num_epochs 1 --benchmark.num_authors 5 "
    f"{AS_IT_IS} target_model",
    "pinned": f"train {TARGET} --model.name somebody/moved@v1 {TOFU} --benchmark.revision v1 {LORA}",
    "tofu": f"train {BOTH} {TOFU} {LORA}",
    "loaded": "load {results}/pinned/modules/*",
    "newest": f"train {TARGET} --model.name somebody/moved {TOFU} {AS_IT_IS} target_model",
    "renamed": f"train {TARGET} --model.name somebody/old {MUSE} --benchmark.corpus books {AS_IT_IS} target_model",
    "broke-off-once": f"train {TARGET} --model.name somebody/breaks-off-once {MUSE} {AS_IT_IS} target_model",
}
GATED = "is gated; ask for access at {endpoint}/somebody/gated, and log in (hf auth login)"
MISSING = "is not on the hub, or private; check its name, or log in (hf auth login)"
NO_REVISION = "name one of its branches, tags or commits"
NO_COMMIT = "a" * 40
FAILS = {
    f"{TARGET} --model.name somebody/breaks-off {MUSE} {AS_IT_IS} target_model": (
        "model.name: somebody/breaks-off could not be downloaded; run it again, and what is there already is kept"
    ),
    f"{TARGET} --model.name somebody/gated {MUSE} {AS_IT_IS} target_model": f"model.name: somebody/gated {GATED}",
    f"{TARGET} --model.retain_model somebody/gated {MUSE} {LORA}": f"model.retain_model: somebody/gated {GATED}",
    f"{BOTH} --benchmark wmdp {AS_IT_IS} retain_model": (
        "benchmark.data_dir: cais/wmdp-bio-forget-corpus (train) cannot be read from the hub (Dataset "
        "'cais/wmdp-bio-forget-corpus' is a gated dataset on the Hub. You must be authenticated to access it.); ask "
        "for access where it is gated, or give a folder"
    ),
    f"{BOTH} --model.name somebody/nothing {MUSE} {LORA}": f"model.name: somebody/nothing {MISSING}",
    f"{BOTH} --model.retain_model somebody/nothing {MUSE} {LORA}": f"model.retain_model: somebody/nothing {MISSING}",
    f"{BOTH} --model.name some/body/else {MUSE} {LORA}": "model.name: some/body/else is no name on the hub",
    f"{BOTH} --benchmark rwku {LORA}": f"benchmark.data_dir: jinzhuoran/RWKU {MISSING}",
    f"{BOTH} --model.name somebody/target@v9 {MUSE} {LORA}": (
        f"model.name: somebody/target has no revision v9; {NO_REVISION}"
    ),
    f"{TARGET} --model.name somebody/target@{NO_COMMIT} {MUSE} {LORA}": (
        f"model.name: somebody/target has no revision {NO_COMMIT}; {NO_REVISION}"
    ),
    f"{BOTH} {TOFU} --benchmark.revision v9 {LORA}": (
        f"benchmark.revision: locuslab/TOFU has no revision v9; {NO_REVISION}"
    ),
    f"--benchmark muse --benchmark.data_dir {{muse_dir}} --benchmark.revision v1 {LORA}": (
        "benchmark.revision: is one of the hub, and benchmark.data_dir is read; leave one out"
    ),
    "evaluate somebody/gated --name theirs": f"external.model: somebody/gated {GATED}",
    "evaluate somebody/nothing --name theirs": f"external.model: somebody/nothing {MISSING}",
}
"""Command → all it says."""


class Served(NamedTuple):
    """What came of all the commands."""

    hub: Hub
    home: Path
    results: Path
    ended: dict[str, Ended]


@pytest.fixture(scope="module")
def served(hub: Hub, muse_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """WORKS in a results folder each, FAILS in one folder; and the download that broke off, once more."""
    home, results = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("results")
    lines = {name: f"{line} {QUICK} --results {results / name}" for name, line in WORKS.items()}
    lines["update"] = f"{WORKS['update']} {QUICK} --results {results / 'muse'}"
    lines["loaded"] = WORKS["loaded"].format(results=results)
    for line in [*FAILS, "again"]:
        words = f"evaluate {line[9:]} {BOTH} {MUSE}" if line.startswith("evaluate") else f"train {line}"
        words = f"train {next(iter(FAILS))}" if line == "again" else words.format(muse_dir=muse_dir)
        lines[line] = f"{words} {QUICK} --results {results / 'failed'}"
    return Served(hub, home, results, _run(hub, home, lines))


def _commits(served: Served, name: str) -> dict[str, dict[str, str]]:
    """Of each row of one of WORKS: its method, and what it says that it was read from."""
    rows = store.scan_runs(served.results / name)
    return {method: json.loads(commits) for method, commits in rows.select("method", "hub_commits").iter_rows()}


def _newest(served: Served, *names: str) -> dict[str, str]:
    return {name.split("/", 1)[1]: served.hub.repositories[name].refs["main"] for name in names}


@pytest.mark.parametrize("name", WORKS)
def test_it_works(served: Served, name: str) -> None:
    """Nothing is said but what there is to be said of small models that know nothing."""
    ended = served.ended[name]
    assert ended.code == 0, ended.err
    assert [
        line
        for line in ended.err.splitlines()
        if "seems not to know the forget set" not in line and "passages are left out" not in line
    ] == []


@pytest.mark.parametrize("line", FAILS)
def test_what_does_not_is_one_line(served: Served, muse_dir: Path, line: str) -> None:
    code, _, err = served.ended[line]
    expected = FAILS[line].replace("{endpoint}", served.hub.endpoint)
    assert (code, err) == (2, f"grun-bench: {expected}\n")


def test_rows_say_which_commits_were_read(served: Served) -> None:
    """Of the model as it was asked for and of every data set; of an update, its base's too; of one taught here,
    of what it was made of.
    """
    target, retain = "models/somebody/target", "models/somebody/retain"
    for name, data in {
        "tofu": ["datasets/locuslab/TOFU"],
        "wmdp": [f"datasets/{each}" for each in ("cais/wmdp", "cais/mmlu", "cais/wmdp-corpora", "Salesforce/wikitext")],
        "muse": ["datasets/muse-bench/MUSE-News"],
    }.items():
        commits = _commits(served, name)
        assert commits["target_model"] == _newest(served, target, *data)
        assert commits["retain_model"] == _newest(served, retain, *data)
    assert _commits(served, "tofu")["lora+grad_ascent"] == _newest(served, target, "datasets/locuslab/TOFU")
    update = _newest(served, "models/somebody/update", target, "datasets/muse-bench/MUSE-News")
    assert _commits(served, "muse")["theirs"] == update
    taught = _newest(served, target)
    assert _commits(served, "taught") == {"target_model": taught, "retain_model": taught}


def test_a_pinned_revision_is_what_is_read(served: Served) -> None:
    """`v1` of `moved` is what `target` is, and asks what the world was; the newest is another, and asks what it is."""
    model, data = (served.hub.repositories[name] for name in ("models/somebody/moved", "datasets/locuslab/TOFU"))
    for name, revision in (("pinned", "v1"), ("newest", "main")):
        expected = {"somebody/moved": model.refs[revision], "locuslab/TOFU": data.refs[revision]}
        assert _commits(served, name)["target_model"] == expected
    items = {
        name: store.scan_items(
            served.results / name, runs.filter(pl.col("method") == "target_model")["run_key"].to_list()
        )
        for name in ("tofu", "pinned", "newest")
        for runs in [store.scan_runs(served.results / name)]
    }
    likelihoods = {name: own.filter(split="forget")["answer_nll"].to_list() for name, own in items.items()}
    assert likelihoods["pinned"] == likelihoods["tofu"] != likelihoods["newest"]
    asked = {name: own.filter(split="world_facts")["question"][0][:8] for name, own in items.items()}
    assert asked == {"tofu": "What is ", "pinned": "What was", "newest": "What is "}
    assert served.ended["loaded"].out.strip(), "its module asks for the same base"


def test_an_update_is_exported_without_its_base(served: Served, tmp_path: Path) -> None:
    """The hub has that: it is named, with the commit that was read, to PEFT and in the card."""
    (row,) = store.scan_runs(served.results / "pinned").filter(adapter="lora").to_dicts()
    line = f"export {served.results / 'pinned'} --run {row['run_key']} --output {tmp_path / 'out'}"
    ended = _run(served.hub, served.home, {"export": line})["export"]
    assert ended.code == 0, ended.err
    commit = served.hub.repositories["models/somebody/moved"].refs["v1"]
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("somebody/moved", commit)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'from_pretrained("somebody/moved", revision="{commit}")' in card
    assert "base_model: somebody/moved\n" in card
    assert not (tmp_path / "out" / "base").exists()


def test_a_renamed_repository_is_followed(served: Served) -> None:
    target, news = _newest(served, "models/somebody/target", "datasets/muse-bench/MUSE-News").values()
    assert _commits(served, "renamed")["target_model"] == {"somebody/old": target, "muse-bench/MUSE-Books": news}


def test_a_download_that_breaks_off_goes_on(served: Served) -> None:
    """From where it was where it did so once, and from the start where it gave up; a data set's too."""
    once = served.hub.repositories["models/somebody/breaks-off-once"].refs["main"]
    assert served.hub.asked[f"GET /cdn/{once}/model.safetensors bytes=10485760-"] == 1
    assert served.ended["again"].code == 0, served.ended["again"].err
    news = served.hub.repositories["datasets/muse-bench/MUSE-News"].refs["main"]
    asked = served.hub.asked[f"GET /cdn/{news}/raw/forget-00000-of-00001.parquet"]
    assert asked == 3, "twice under its name, and once under that of the other, which was renamed to it"


def test_what_is_in_the_cache_needs_no_hub(served: Served, tmp_path: Path) -> None:
    """The same run says the same and is of the same commits; what is not there is one line."""
    lines = {
        "tofu": f"{WORKS['tofu']} {QUICK} --results {tmp_path / 'tofu'}",
        "pinned": f"{WORKS['pinned']} {QUICK} --results {tmp_path / 'pinned'}",
        "another": f"train {BOTH} {TOFU} --benchmark.revision {NO_COMMIT} {QUICK} --results {tmp_path / 'another'}",
        "not there": f"train {TARGET} --model.name somebody/nothing {MUSE} {QUICK} --results {tmp_path / 'not'}",
    }
    ended = _run(served.hub, served.home, lines, HF_HUB_OFFLINE="1")
    columns = ["run_key", "hub_commits", "forget_probability"]
    for name in ("tofu", "pinned"):
        assert ended[name].code == 0, ended[name].err
        offline, online = (store.scan_runs(folder / name) for folder in (tmp_path, served.results))
        assert offline.select(columns).equals(online.select(columns))
    newest = served.hub.repositories["datasets/locuslab/TOFU"].refs["main"]
    assert ended["another"][::2] == (
        2,
        f"grun-bench: benchmark.revision: locuslab/TOFU (full) is in the cache, but not its commit {NO_COMMIT}; go "
        f"online, or set benchmark.revision to {newest}\n",
    )
    assert ended["not there"][::2] == (
        2,
        "grun-bench: model.name: somebody/nothing is not in the cache, and the hub cannot be reached; go online, or "
        "give a folder\n",
    )
