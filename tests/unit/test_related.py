"""What a run is measured with, and how what it works on is opened."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks.authors import AuthorsConfig
from bench.cluster.connect import DRIVER
from bench.config import RunConfig, overlay, run_config
from bench.models import prepare
from bench.models.cache import DEFAULT_CACHE_GB, cache_dir, made_once, max_cache_gb
from bench.models.prepare import prepared_model
from bench.models.pretrained import ModelConfig, PretrainedConfig, TinyConfig, empty_model, load_pretrained
from bench.models.sharing import shared_models
from bench.results.columns import SCORES, Row
from bench.results.doubt import doubt
from bench.results.storage import Location, Unreachable
from bench.runs import subject
from bench.runs.execution import Execution
from bench.runs.related import prerequisite, prerequisites
from bench.runs.run import check_size, run_prerequisites
from bench.runs.subject import Subject
from bench.spaces.search_space import SweepConfig
from bench.studies import sweep, tasks
from bench.studies.tasks import resources_of
from grun.adapters.lora import LoraConfig
from grun.errors import UserError


def _methods(config: RunConfig) -> list[str]:
    return [each.method for each in prerequisites(config)]


def test_each_run_is_measured_with_those_before_it() -> None:
    """The retain model with nothing, the target model with the retain model, all else with both, in that order."""
    config = run_config({"adapter": "lora"})
    assert _methods(config) == ["retain_model", "target_model"]
    assert _methods(prerequisite(config, "target_model")) == ["retain_model"]
    assert _methods(prerequisite(config, "retain_model")) == []
    assert prerequisites(config) == prerequisites(run_config({"adapter": "full", "training": {"num_epochs": 9}}))


def test_without_a_retain_model_there_is_the_target_model() -> None:
    known = {"model": "some/model", "model.fine_tuning.num_epochs": 0}
    assert _methods(run_config(overlay({}, known))) == ["target_model"]
    assert _methods(run_config(overlay({}, known | {"adapter": "none"}))) == []
    named = run_config(overlay({}, known | {"model.retain_model": "another/model"}))
    assert _methods(named) == ["retain_model", "target_model"]


@pytest.mark.parametrize(
    ("benchmark", "split", "target", "retain", "named"),
    [
        ("authors", "forget20", {"log10_forget_quality": -1.0}, {}, "log10_forget_quality -1.000"),
        ("authors", "forget20", {"log10_forget_quality": -1.31}, {}, None),
        ("questions", "forget", {"forget_extraction_strength": 0.08}, None, "forget_extraction_strength 0.080"),
        ("questions", "forget", {"forget_extraction_strength": 0.3}, None, None),
        ("wmdp", "bio", {"wmdp_bio_accuracy": 0.25, "wmdp_cyber_accuracy": 0.9}, None, "wmdp_bio_accuracy 0.250"),
        ("wmdp", "cyber", {"wmdp_bio_accuracy": 0.25, "wmdp_cyber_accuracy": 0.9}, None, None),
        ("corpora", "forget", {"forget_verbatim_rouge_l_f1": 0.3}, {"forget_verbatim_rouge_l_f1": 0.3}, "l_f1 0.300"),
        ("corpora", "forget", {"forget_verbatim_rouge_l_f1": 0.8}, {"forget_verbatim_rouge_l_f1": 0.3}, None),
        ("corpora", "forget", {}, None, None),
    ],
)
def test_a_target_model_that_never_knew_is_said(
    benchmark: str, split: str, target: Row, retain: Row | None, named: str | None
) -> None:
    """log10 0.05 is -1.301; four choices; a tenth of the tokens; or what the retain model gives away. Else no word."""
    scores = dict.fromkeys(SCORES)
    row = {"benchmark": benchmark, "forget_split": split, **scores, **target}
    line = doubt(row, None if retain is None else {**scores, **retain})
    if named is None:
        assert line is None
    else:
        assert line is not None
        assert f"{named}), so that forgetting it shows nothing" in line


def test_by_how_many_workers_a_sweep_prepares_and_asks_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no GPU holds whole cannot be asked by one worker; without --shard one is enough, and starts at once. What
    both teaches and asks goes on with the retain model, which is measured with nothing, while the target is taught."""
    asked: list[tuple[str, int, bool, float]] = []
    at_once_seen: set[int | None] = set()

    class Recorded:
        def __init__(self, execution: Execution, log: Any, at_once: int | None) -> None:
            self.drivers = resources_of(execution).get(DRIVER, 0)
            at_once_seen.add(at_once)

        def add(self, work: Any, config: RunConfig, execution: Execution | None = None) -> None:
            if execution is not None:
                asked.append((work.__name__, execution.num_workers, execution.shard, self.drivers))

        def wait(self) -> None:
            pass

    monkeypatch.setattr(sweep, "Tasks", Recorded)
    study = SweepConfig(study="s", base={"adapter": "full"}, search_space={})
    for shard in (True, False):
        execution = Execution(results=tmp_path, num_workers=2, shard=shard)
        sweep.make_prerequisites([study.run({})], execution, lambda line: None, 3)
    sweep.make_prerequisites([study.run({})], Execution(results=tmp_path), lambda line: None, 3)
    assert at_once_seen == {3}
    assert asked == [
        *[(work, 2, True, 1.0) for work in ("_prepare_and_evaluate", "_prepare", "_evaluate")],
        *[("_prepare", 2, False, 1.0)] * 2,
        *[("_evaluate", 1, False, 0)] * 2,
        *[(work, 1, False, 0) for work in ("_prepare_and_evaluate", "_prepare", "_evaluate")],
    ]


@pytest.mark.parametrize(("adapter", "in_place"), [("full", True), ("lora", False), ("grun", False), ("none", False)])
def test_a_model_is_always_opened_in_the_dtype_it_is_trained_in(
    adapter: str, in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU only weights that are trained themselves are float32, also when a module is loaded for lm-eval."""
    opened: list[Any] = []

    def load_pretrained(name: str, device: Any, *, trained_in_place: bool, prompt: Any) -> tuple[Any, Any]:
        opened.append((name, str(device), trained_in_place))
        return None, None

    monkeypatch.setattr(subject, "load_pretrained", load_pretrained)
    config = run_config({"adapter": adapter, "model": {"name": "m", "fine_tuning": {"num_epochs": 0}}})
    assert Subject(config=config, execution=Execution(results=tmp_path, device="cpu")).model is None
    assert opened == [("m", "cpu", in_place)]


@pytest.mark.parametrize("size", ["nan", "-1", "inf", "many"])
def test_a_cache_of_no_size_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRUN_BENCH_CACHE_GB", size)
    with pytest.raises(UserError, match=f"GRUN_BENCH_CACHE_GB: '{size}' is not a number of gigabytes"):
        max_cache_gb()


def test_a_full_cache_is_one_line_and_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path))

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="GRUN_BENCH_CACHE: no space is left in"):
        made_once(tmp_path / "models" / "m", make)
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["m.lock"]


def test_what_a_killed_process_left_half_made_goes(tmp_path: Path) -> None:
    """One that another had begun to fill, in whatever process, is neither found nor left to lie there."""
    other = "import sys, os, pathlib\nfrom bench.models.cache import made_once\n"
    other += "made_once(pathlib.Path(sys.argv[1]), lambda folder: (folder.mkdir(), os.kill(os.getpid(), 9)))"
    killed = subprocess.run([sys.executable, "-c", other, str(tmp_path / "m")])
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2, "the lock, and what was begun"
    made_once(tmp_path / "m", lambda folder: folder.mkdir())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m", "m.lock"]


def test_a_cache_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"GRUN_BENCH_CACHE: .*/cache.* is not writable; set it to a folder that is"):
        made_once(tmp_path / "cache" / "models" / "m", lambda folder: folder.mkdir())


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[str], Path], list[Path]]:
    """(the target model as a node comes to have it, each time it is trained); nodes share what they trained."""
    trained: list[Path] = []

    def build(folder: Path, **others: Any) -> None:
        trained.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "weights").write_text(f"trained {len(trained)}")

    monkeypatch.setattr(prepare, "_build", build)
    monkeypatch.setenv("GRUN_BENCH_SHARED", str(tmp_path / "shared"))
    benchmark = AuthorsConfig(num_authors=5).load()

    def model(node: str) -> Path:
        monkeypatch.setenv("GRUN_BENCH_CACHE", str(tmp_path / node))
        return Path(prepared_model(TinyConfig(), benchmark, "target_model"))

    return model, trained


def test_a_damaged_shared_model_is_set_aside_and_trained_again(
    nodes: tuple[Callable[[str], Path], list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second node finds other weights than were shared: it trains its own, for the third one too."""
    model, trained = nodes
    shared = tmp_path / "shared" / "models" / model("one").name
    (shared / "weights").write_text("spoilt")
    assert [(model(node) / "weights").read_text() for node in ("two", "three")] == ["trained 2"] * 2
    assert len(trained) == 2
    aside = shared.with_name(f"{shared.name}.damaged-1")
    assert (aside / "weights").read_text() == "spoilt"
    assert aside.name in caplog.text


def test_a_shared_model_out_of_reach_is_left_alone(
    nodes: tuple[Callable[[str], Path], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be reached now is not called damaged, nor trained a second time: it is one line."""
    model, trained = nodes
    model("one")
    before = {file: file.read_bytes() for file in (tmp_path / "shared").rglob("*") if file.is_file()}

    def fail(self: Location) -> None:
        raise Unreachable("GRUN_BENCH_SHARED", "does not answer")

    monkeypatch.setattr(Location, "read_folder", fail)
    with pytest.raises(UserError, match="does not answer"):
        model("two")
    assert len(trained) == 1
    assert {file: file.read_bytes() for file in (tmp_path / "shared").rglob("*") if file.is_file()} == before


def test_no_more_tasks_at_once_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tasks, two at once, one done at a time: never three, and what each returned in the order they were added."""
    running: list[int] = []
    most: list[int] = []

    class Remote:
        def __init__(self, work: Any) -> None:
            self.work = work

        def remote(self, number: int, say: Any) -> int:
            running.append(number)
            most.append(len(running))
            return int(self.work(number))

    class Lines:
        put = None

        def qsize(self) -> int:
            return 0

        def get_nowait_batch(self, number: int) -> list[str]:
            return []

    def wait(pending: list[int], timeout: float) -> tuple[list[int], list[int]]:
        running.pop()
        return pending[-1:], pending[:-1]

    monkeypatch.setattr(tasks, "Queue", lambda **options: Lines())
    monkeypatch.setattr(tasks.ray, "remote", lambda **options: Remote)
    monkeypatch.setattr(tasks.ray, "wait", wait)
    monkeypatch.setattr(tasks.ray, "get", lambda found: found)
    for at_once, expected in ((2, 2), (None, 5)):
        most.clear()
        some = tasks.Tasks(Execution(results=tmp_path), print, at_once)
        for number in range(5):
            some.add(lambda number: number * 10, number)
        assert some.wait() == [0, 10, 20, 30, 40]
        assert max(most) == expected


TOO_SMALL: dict[str, dict[str, Any]] = {
    "adapter.layers": {"adapter": "grun", "adapter.layers": [2, 9]},
    "adapter.rank": {"adapter": "reft", "adapter.rank": 65},
    "adapter.gate_layer": {"adapter": "gated_lora", "adapter.gate_layer": 9},
    "adapter.dims": {"adapter": "eco", "adapter.dims": 65},
    "forget_loss.layer": {"adapter": "lora", "forget_loss": "rmu", "forget_loss.layer": 9},
}
"""Settings that the test's model of four layers, 64 wide, has no room for."""


@pytest.mark.parametrize(
    "make",
    [
        lambda config, execution: run_prerequisites(config, execution),
        lambda config, execution: sweep.make_prerequisites([config], execution, print),
    ],
    ids=["train", "sweep"],
)
@pytest.mark.parametrize("field", TOO_SMALL)
def test_what_the_model_is_too_small_for_is_said_before_it_is_taught(
    field: str,
    make: Callable[[RunConfig, Execution], Any],
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Hours go into a model of 8B and its retain model: neither is prepared."""
    taught: list[Any] = []
    monkeypatch.setattr(subject, "prepared_model", lambda *model: taught.append(model))
    small = {"model": "tiny", "model.num_layers": 4, "model.hidden_size": 64}
    config = run_config(overlay({}, {**small, **TOO_SMALL[field]}))
    with pytest.raises(UserError, match=rf"^{field.replace('.', '[.]')}: "):
        make(config, Execution(results=tmp_path))
    assert taught == []


@pytest.mark.parametrize("kind", ["from scratch", "folder", "update"])
def test_a_models_size_is_known_without_its_weights(kind: str, target_folder: str, tmp_path: Path) -> None:
    """An update is as large as its base."""
    model: ModelConfig = TinyConfig(num_layers=4, hidden_size=64, vocab_size=600)
    if kind == "update":
        update = {"base_model_name_or_path": target_folder, "peft_type": "LORA", "task_type": "CAUSAL_LM"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(update))
    if kind != "from scratch":
        model = PretrainedConfig(name=target_folder if kind == "folder" else str(tmp_path))
    empty = empty_model(model)
    assert empty.device.type == "meta"
    assert (
        sum(weight.numel() for weight in empty.parameters())
        == load_pretrained(target_folder, "cpu")[0].num_parameters()
    )


@pytest.mark.parametrize("read", [lambda weight: weight.norm().item(), lambda weight: weight.numpy()])
def test_an_adapter_that_reads_weights_when_it_is_attached_is_not_refused(
    read: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of somebody's own, say, that starts from their singular values: there are none yet to read."""
    attached: list[Any] = []

    def attach(config: LoraConfig, model: Any, seed: int) -> None:
        attached.append(model)
        read(next(model.parameters()).detach())

    monkeypatch.setattr(LoraConfig, "attach", attach)
    check_size(run_config({"adapter": "lora"}))
    assert len(attached) == 1


def test_a_cache_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and caches were put into the working directory."""
    for name in ("CACHE", "SHARED", "CACHE_GB"):
        monkeypatch.setenv(f"GRUN_BENCH_{name}", "")
    assert cache_dir() == Path.home() / ".cache" / "grun-bench"
    assert shared_models() is None
    assert max_cache_gb() == DEFAULT_CACHE_GB
