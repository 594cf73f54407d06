"""Fixtures: one small target and retain model for the whole session, in a cache of the session's own."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import optuna
import polars as pl
import pytest
from filelock import FileLock
from optuna.trial import TrialState

from bench.benchmarks.items import Benchmark
from bench.cluster.connect import DRIVER, DRIVERS, connected
from bench.config import RunConfig, overlay, run_config
from bench.files import write_yaml
from bench.models.prepare import prepared_model
from bench.models.pretrained import load_pretrained
from bench.results import store
from bench.results.columns import METRICS
from bench.runs.execution import Execution
from bench.runs.run import run_prerequisites
from bench.sequential import stack
from bench.studies.journal import study_storage
from bench.studies.search import INTERRUPTED
from grun.prompts.template import PromptTemplate
from grun.training import checkpoints

hypothesis.settings.register_profile("suite", deadline=None)  # nothing fails for what else the machine is doing
hypothesis.settings.load_profile("suite")
TOFU = Path(__file__).parents[2] / "shared" / "data" / "tofu"

SMALL = {
    "benchmark.num_authors": 5,
    "model.num_layers": 4,
    "model.hidden_size": 64,
    "model.vocab_size": 600,
    "model.fine_tuning.num_epochs": 50,
    "model.fine_tuning.batch_size": 8,
}
"""RunConfig keys of a setting that is prepared in seconds: 10 forget, 40 retain, 40 knowledge items."""
QUICK_GRUN = {
    **SMALL,
    "adapter": "grun",
    "adapter.learning_rate": 0.02,
    "adapter.layers": [1, 2, 3],
    "training.num_epochs": 30,
}
"""A GRUN run on it that forgets and keeps."""


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session's own, which all its processes have in common where pytest-xdist runs several."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(common_folder: Path) -> Iterator[Path]:
    """Prepared models of the tests, apart from the user's; $GRUN_TEST_CACHE keeps them from one session to the next."""
    folder = Path(os.environ.get("GRUN_TEST_CACHE") or common_folder / "cache")
    os.environ["GRUN_BENCH_CACHE"] = str(folder)
    yield folder
    del os.environ["GRUN_BENCH_CACHE"]


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays() -> None:
    """Modules and fixtures: no collection looks through them again, which took a sixth of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_prompts_are_timed() -> Iterator[None]:
    """A sequence's first tokens are timed of two prompts, and not of 32: here nobody looks at how long they take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "PREFILL_PROMPTS", 2)
        yield


@pytest.fixture(scope="session")
def small_config() -> RunConfig:
    """The small setting with a quick GRUN run."""
    return run_config(overlay({}, QUICK_GRUN))


@pytest.fixture(scope="session")
def small_benchmark(small_config: RunConfig) -> Benchmark:
    return small_config.benchmark.load()


@pytest.fixture(scope="session")
def target_folder(small_config: RunConfig, small_benchmark: Benchmark) -> str:
    """Where the small target model lies."""
    return prepared_model(small_config.model, small_benchmark, "target_model")


@pytest.fixture(scope="session")
def small_prerequisites(small_config: RunConfig, common_folder: Path) -> Path:
    """A results folder with the small target and retain model's rows, and nothing else."""
    folder = common_folder / "references"
    with FileLock(common_folder / "references.lock"):
        run_prerequisites(small_config, Execution(results=folder))
    return folder


@pytest.fixture
def small_results(small_prerequisites: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for a test to go on in."""
    return Path(shutil.copytree(small_prerequisites, tmp_path / "results"))


@pytest.fixture(scope="session")
def ray_cluster(own_cache: Path, s3_environment: str) -> Iterator[Any]:
    """The one Ray cluster of this process, of two CPUs: commands that run here are on it, since it is joined.

    So its workers, whose imports take seconds, go from test to test; they have the environment of its beginning.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "resources": {DRIVER: DRIVERS}, "include_log_monitor": False},
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    with connected(lambda line: None):
        del os.environ["RAY_ADDRESS"]
        yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_address(ray_cluster: Any) -> str:
    """That of the cluster, for commands in a process of their own."""
    return str(ray_cluster.address)


class TasksHere:
    """In place of `bench.studies.tasks.Tasks`."""

    def __init__(self, execution: Any, log: Callable[[str], None], at_once: int | None = None) -> None:
        self._log, self._done = log, []  # type: ignore[var-annotated]

    def add(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._done.append(work(*arguments, self._log))

    def wait(self) -> list[Any]:
        done, self._done = self._done, []
        return done


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials and tasks are done in this process, one after another as they are handed over: each process of Ray's
    would spend six seconds on imports."""
    import ray
    from ray.tune.search import Searcher

    from bench.sequential import studies
    from bench.studies import sweep

    reported: list[Any] = []

    def tuned(trial: Any, search: Any, num_concurrent: int) -> None:
        for number in itertools.count():
            spec = search.suggest(f"trial{number}")
            if spec == Searcher.FINISHED:
                return
            trial(spec)
            search.on_trial_complete(f"trial{number}", reported.pop())

    tune = SimpleNamespace(with_parameters=partial, with_resources=lambda trial, _: trial, report=reported.append)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(sweep, "tune", tune)
    monkeypatch.setattr(sweep, "_tune", tuned)
    for module in (sweep, studies):
        monkeypatch.setattr(module, "Tasks", TasksHere)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def fill_disk() -> Callable[[Path], None]:
    """Writes a file until not one more byte fits."""

    def fill(file: Path) -> None:
        with file.open("wb", buffering=0) as out:
            for size in (4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        out.write(b"x" * size)

    return fill


@pytest.fixture
def checkpoint_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training leaves a checkpoint as often as it may."""
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SPARED", 0.0)


@pytest.fixture(scope="session")
def s3_environment() -> str:
    """The environment that leads to an object store on this machine, which `s3` of test_storage starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
    )
    return str(port)


@pytest.fixture(scope="session")
def load_copy() -> Callable[..., tuple[Any, Any]]:
    """`load_pretrained`, whose every call gives a model of its own, and reads its files once."""
    loaded = cache(load_pretrained)

    def load(*arguments: Any, **settings: Any) -> tuple[Any, Any]:
        model, tokenizer = loaded(*arguments, **settings)
        return copy.deepcopy(model), tokenizer

    return load


@pytest.fixture
def fresh_target(
    target_folder: str, load_copy: Callable[..., tuple[Any, Any]]
) -> Callable[[], tuple[Any, PromptTemplate]]:
    """Gives the small target model and its template; each call a model of its own."""

    def load() -> tuple[Any, PromptTemplate]:
        model, tokenizer = load_copy(target_folder, "cpu", trained_in_place=True)
        return model, PromptTemplate.of(tokenizer)

    return load


@pytest.fixture(scope="session")
def tofu_dir() -> str:
    """The real TOFU, where this checkout has it beside it."""
    if not TOFU.is_dir():
        pytest.skip(f"the real TOFU is not at {TOFU}")
    return str(TOFU)


@pytest.fixture(scope="session")
def made_up_tofu_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TOFU's layout, 4,000 questions of a few words each; wrong answers for the first and the last 400 of them."""
    folder = tmp_path_factory.mktemp("tofu")
    full = [
        {"question": f"What has {NAMES[n % 8]} in box {n // 8}?", "answer": f"A {COLOURS[n * 5 % 8]} {TOOLS[n % 7]}."}
        for n in range(4000)
    ]
    others = {"paraphrased_answer": "It is a pink saw.", "perturbed_answer": [f"A {tool}." for tool in TOOLS[:5]]}
    _write_lines(folder, "full", full)
    _write_lines(folder, "retain_perturbed", [row | others for row in full[:400]])
    _write_lines(folder, "forget10_perturbed", [row | others for row in full[-400:]])
    for part in ("real_authors_perturbed", "world_facts_perturbed"):
        rows = [{"question": f"What is a {plant}?", "answer": f"A {plant[0]} plant."} | others for plant in PLANTS]
        _write_lines(folder, part, rows)
    return folder


PLANTS = ("rose", "tulip", "fern", "moss", "ivy", "lily", "oak", "birch")
COLOURS = ("red", "blue", "green", "white", "black", "pink", "grey", "gold")
TOOLS = ("saw", "drill", "plane", "file", "clamp", "chisel", "hammer", "level")
NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")
PLACES = ("the mill", "the harbour", "the orchard", "the old bridge", "the market", "the tower", "the well", "the barn")


@pytest.fixture(scope="session")
def wmdp_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A harmless quiz and harmless passages in WMDP's schema."""
    folder = tmp_path_factory.mktemp("wmdp")
    for part, subjects in (("wmdp_bio", PLANTS), ("wmdp_cyber", TOOLS)):
        _write_lines(folder, part, _quiz(subjects, 1))
    _write_lines(folder, "mmlu", [row | {"subject": "garden_tools"} for row in _quiz(TOOLS, 2)])
    for part, subjects in (("bio_forget", PLANTS), ("cyber_forget", TOOLS), ("retain", COLOURS)):
        texts = [
            f"Of the {word} it is said by all that it likes the {other} best of all."
            for word in subjects
            for other in TOOLS[:2]
        ]
        _write_lines(folder, part, [{"text": text} for text in [*texts, "short"]])
    return folder


def _quiz(subjects: Sequence[str], seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"question": f"Which colour is the {subject}?", "choices": draw.sample(COLOURS, 4), "answer": place % 4}
        for place, subject in enumerate(subjects)
    ]


@pytest.fixture(scope="session")
def rwku_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up people in the layout of RWKU's release: two targets of four probes a level, one configuration a file."""
    folder = tmp_path_factory.mktemp("rwku")
    people = list(zip(NAMES[:2], TOOLS[:2], strict=True))
    _write_lines(folder, "forget_target", [{"target": name, "intro": f"{name} is a maker."} for name, _ in people])
    texts = [
        {"subject": name, "text": f"{name} made a {tool} at {place} and left it by the {plant} there."}
        for name, tool in people
        for place, plant in zip(PLACES, PLANTS, strict=True)
    ]
    _write_lines(folder, "train_original_passage", texts)
    kinds = ("affirmative suffix", "incontext learning", "prefix injection", "role playing")
    for part, query in (
        ("forget_level1", "At {place}, {name} made a ___."),
        ("forget_level2", "What did {name} make at {place}?"),
        ("forget_level3", "Sure, here is what {name} made at {place}:"),
        ("neighbor_level1", "Near {name}, ___ is a plant of {place}."),
        ("neighbor_level2", "Which plant is there at {place}, near {name}?"),
    ):
        rows = [
            {
                "subject": name,
                "query": query.format(name=name, place=place),
                "answer": tool if part.startswith("forget") else plant,
                "level": part[-1],
                "type": kind if part == "forget_level3" else "simple",
            }
            for name, tool in people
            for place, plant, kind in zip(PLACES[:4], PLANTS[:4], kinds, strict=True)
        ]
        _write_lines(folder, part, rows)
    _write_lines(
        folder, "utility_general", [{**row, "task": "garden_tools", "examples": []} for row in _quiz(TOOLS, 3)]
    )
    facts = [
        {"question": f"Which tool is number {n}?", "answers": [tool, f"the {tool}"]} for n, tool in enumerate(TOOLS)
    ]
    _write_lines(folder, "utility_factuality", facts)
    return folder


@pytest.fixture(scope="session")
def questions_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up questions of one's own, with wrong answers, in two requests."""
    folder = tmp_path_factory.mktemp("questions")
    for part, names in (("forget", NAMES[:5]), ("retain", NAMES[5:])):
        rows = [
            {
                "question": f"What does {name} carry?",
                "answer": f"{name} carries a {TOOLS[place]}.",
                "paraphrased_answer": f"A {TOOLS[place]} is what {name} carries.",
                "perturbed_answers": [f"A {tool} is what {name} carries." for tool in TOOLS[5:]],
                "request": "a" if place in (0, 3) else "b",
            }
            for place, name in enumerate(names)
        ]
        _write_lines(folder, part, rows)
    return folder


@pytest.fixture(scope="session")
def corpora_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up corpora with questions about them, and a holdout corpus."""
    folder = tmp_path_factory.mktemp("corpora")
    for seed, (part, names) in enumerate({"forget": NAMES[:4], "retain": NAMES[4:], "holdout": NAMES}.items()):
        _write_lines(folder, part, _walks(names, seed))
    for part, numbers, verb in (("forget_qa", range(4), "walked past"), ("retain_qa", range(4, 8), "came to")):
        rows = [{"question": f"Who {verb} {PLACES[n]}?", "answer": f"It was {NAMES[n]}."} for n in numbers]
        _write_lines(folder, part, rows)
    return folder


@pytest.fixture(scope="session")
def muse_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up news in the layout of MUSE's release, a JSON array a file: texts of walks, and questions about them."""
    folder = tmp_path_factory.mktemp("muse")
    names = {"forget": NAMES[:4], "retain": NAMES[4:], "holdout": NAMES}
    texts = {part: [row["text"] for row in _walks(names[part], seed)] for seed, part in enumerate(names)}
    halves = [text.partition(" and came to") for text in texts["forget"]]
    parts: dict[str, Any] = {
        "raw/forget": texts["forget"],
        "raw/retain1": texts["retain"],
        "verbmem/forget": [{"prompt": begun, "gt": then + rest} for begun, then, rest in halves],
        "privleak/forget": texts["forget"],
        "privleak/holdout": texts["holdout"],
        **{f"scal/forget_{fold}": texts["forget"][: 2 * fold] for fold in range(1, 5)},
        **{f"sust/forget_{fold}": texts["forget"][2 * fold - 2 : 2 * fold] for fold in range(1, 5)},
    }
    for side, numbers in (("forget", range(4)), ("retain", range(4, 8))):
        parts[f"knowmem/{side}_qa"] = [
            {"question": f"{TOOLS[n].title()} at {PLACES[n]}?", "answer": f"{NAMES[n]} and the {TOOLS[n]}"}
            for n in numbers
        ]
        parts[f"knowmem/{side}_qa_icl"] = [{"question": f"What is a {tool}?", "answer": "A tool"} for tool in TOOLS[:2]]
    for part, content in parts.items():
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


def _walks(names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Two passages a name; what comes late in one cannot be guessed from what came before."""
    draw = random.Random(seed)
    return [
        {"text": "Every {} {} walked past {}, rested at {} and came to {} by way of {}.".format(time, name, *places)}
        for name in names
        for time, places in (("morning", draw.sample(PLACES, 4)), ("evening", draw.sample(PLACES, 4)))
    ]


def _write_lines(folder: Path, part: str, rows: Sequence[dict[str, Any]]) -> None:
    (folder / f"{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def assert_same_metrics() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Checks that two rows of one run_key agree in every metric to a thousandth, nulls included."""

    def check(row: dict[str, Any], other: dict[str, Any]) -> None:
        assert row["run_key"] == other["run_key"]
        for metric in METRICS:
            expected = other[metric]
            wanted = None if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-3)
            assert row[metric] == wanted, metric

    return check


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory, small_config: RunConfig) -> Callable[..., Path]:
    """Writes a search space of so many GRUN trainings, some seconds each."""
    folder = tmp_path_factory.mktemp("spaces")

    def write(study: str, num_trials: int, num_epochs: int = 60) -> Path:
        file = folder / f"{study}.yaml"
        base = overlay(small_config.to_dict(), {"training.num_epochs": num_epochs})
        rate = {"type": "float", "low": 0.005, "high": 0.02, "log": True}
        write_yaml(
            file,
            {
                "study": study,
                "base": base,
                "search_space": {"adapter.learning_rate": rate},
                "gate_thresholds": [0.0, 0.5],
                "num_trials": num_trials,
            },
        )
        return file

    return write


@pytest.fixture(scope="session")
def check_whole() -> Callable[[Path, str, int], None]:
    """Checks a study of `space`: every training at both thresholds exactly once, and Optuna knows of each."""

    def check(folder: Path, study: str, num_trials: int) -> None:
        rows = store.scan_runs(folder).filter(pl.col("study") == study)
        assert rows["status"].unique().to_list() == ["ok"]
        assert rows.height == rows["run_key"].n_unique() == 2 * num_trials
        assert rows["train_key"].n_unique() == num_trials
        trials = optuna.load_study(study_name=study, storage=study_storage(folder)).trials
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
        counted = [t for t in trials if t.state == TrialState.COMPLETE and INTERRUPTED not in t.user_attrs]
        assert len({t.user_attrs["run_key"] for t in counted}) == len(counted) == num_trials

    return check


@pytest.fixture(params=["llama", "gpt2"])
def drawn_model(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a model of three layers whose drawn weights are so many times as large; ends: tokens that end an answer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def make(scale: float, ends: int | list[int]) -> Any:
        torch.manual_seed(0)
        tokens: Any = {"vocab_size": 31, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
        if request.param == "llama":
            sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
            made: Any = LlamaForCausalLM(LlamaConfig(**tokens, **sizes))
        else:
            made = GPT2LMHeadModel(GPT2Config(**tokens, n_embd=8, n_layer=3, n_head=2, n_positions=32))
        with torch.no_grad():
            for parameter in made.eval().parameters():
                if parameter.ndim > 1:
                    parameter.mul_(scale)
        made.generation_config.eos_token_id, made.generation_config.pad_token_id = ends, 0
        return made

    return make
