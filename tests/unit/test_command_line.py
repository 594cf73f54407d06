"""`grun-bench` before anything runs: help that fits a screen, options from the dataclasses, and no heavy import."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.cli.commands import COMMANDS, GROUPS
from bench.cli.main import main, parsed
from bench.cli.options import CONFIG_SECTIONS
from bench.config import RunConfig, run_config
from bench.results.storage import location
from bench.runs.execution import Execution
from bench.speed.scaling.no_op import no_op, no_op_references
from bench.studies.pool import Pool

Captured = pytest.CaptureFixture[str]
SCREEN_LINES, SCREEN_COLUMNS = 40, 100
HEAVY = ("torch", "transformers", "ray", "optuna", "peft", "pyvene", "datasets", "scipy", "sklearn")
"""Each takes from half a second to several to import."""
PARQUET = ("polars", "pyarrow", "numpy")
"""What reads a results folder: no help text and no error in the words needs them."""
POOLED = ("sweep", "submit", "sequential", "seeds")
ON_ONE_MACHINE = ("prepare", "train", "evaluate", "benchmark")
WORDS = {
    "sweep": ["space.yaml"],
    "submit": ["cluster.yaml", "space.yaml"],
    "sequential": ["space.yaml"],
    "seeds": ["results"],
    "evaluate": ["module"],
}
"""What a command cannot do without."""


def _help(words: Sequence[str], capsys: Captured) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(name: str, capsys: Captured) -> None:
    printed = _help([name], capsys)
    lines = printed.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    example = COMMANDS[name].EXAMPLE
    assert lines[-1].strip() == example
    assert parsed(example.split()[1:])[0] is COMMANDS[name]
    assert callable(COMMANDS[name].run)


def test_help_lists_every_command_in_its_group(capsys: Captured) -> None:
    """A group's name, then a line a command."""
    lines = _help([], capsys).splitlines()
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    assert len(lines) <= SCREEN_LINES
    for group, names in GROUPS.items():
        start = lines.index(f"{group}:") + 1
        assert tuple(line.split()[0] for line in lines[start : start + len(names)]) == names


@pytest.mark.parametrize(
    ("name", "group"), [("train", "where and how it runs:"), ("sweep", "how many at once, and how long:")]
)
def test_help_says_what_the_docstrings_say(name: str, group: str, capsys: Captured) -> None:
    """The first words of a field's docstring, the choices of its type, and its default."""
    printed = _help([name], capsys)
    assert f"\n{group}\n" in printed
    assert "--num-workers N" in printed
    assert "Processes that share a run, through Ray Train (default: 1)" in printed
    assert "--device {auto,cpu,cuda}" in printed


def test_every_field_is_an_option() -> None:
    """Where a run happens and what its results are called are said otherwise; the rest of the fields are options."""
    said = {field.name for field in dataclasses.fields(Execution)} - {"results", "save_module"}
    words = [
        *("--device", "cpu", "--engine", "plain", "--num-threads", "3", "--num-workers", "2", "--ray-train", "always"),
        *(
            "--cpus-per-worker",
            "4",
            "--gpus-per-worker",
            "0.5",
            "--accumulation-steps",
            "6",
            "--gradient-checkpointing",
        ),
        "--shard",
    ]
    options = parsed(["train", *words])[1]
    assert options.execution("r") == Execution(
        results=location("r"),
        device="cpu",
        engine="plain",
        num_threads=3,
        num_workers=2,
        ray_train="always",
        cpus_per_worker=4,
        gpus_per_worker=0.5,
        accumulation_steps=6,
        gradient_checkpointing=True,
        shard=True,
    )
    assert said <= set(vars(options))
    options = parsed(["sweep", "f", "--num-concurrent", "2", "--time-budget", "1.5", "--gpus-per-worker", "0"])[1]
    assert options.pool() == Pool(num_concurrent=2, time_budget=1.5)
    assert options.execution("r").gpus_per_worker == 0.0
    assert {field.name for field in dataclasses.fields(RunConfig)} == set(CONFIG_SECTIONS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-workers", "0"), "--num-workers: must be greater than or equal to 1 (got '0')"),
        (("--num-workers", "two"), "--num-workers: must be a valid integer"),
        (("--gpus-per-worker", "-1"), "--gpus-per-worker: must be greater than or equal to 0 (got '-1')"),
        (("--gpus-per-worker", "nan"), "--gpus-per-worker: must be"),
        (("--cpus-per-worker", "0"), "--cpus-per-worker: must be greater than or equal to 1 (got '0')"),
        (("--accumulation-steps", "x"), "--accumulation-steps: must be a valid integer"),
        (("--num-threads", "0"), "--num-threads: must be greater than or equal to 1 (got '0')"),
        (("--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
        (("--time-budget", "0"), "--time-budget: must be greater than 0 (got '0')"),
        (("--num-concurrent", "0"), "--num-concurrent: must be greater than or equal to 1 (got '0')"),
    ],
)
def test_bounds_of_the_dataclasses_are_one_line(words: tuple[str, ...], message: str, capsys: Captured) -> None:
    """Said before any file is read: none of these is there."""
    of_the_pool = words[0] in ("--time-budget", "--num-concurrent")
    for name in POOLED if of_the_pool else (*POOLED, *ON_ONE_MACHINE):
        with pytest.raises(SystemExit) as stop:
            main([name, *WORDS.get(name, []), *words])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"grun-bench: {message}"), name
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["pareto", "report", "rescore", "compact"])
def test_a_command_that_takes_no_settings_says_so(name: str, capsys: Captured) -> None:
    """They were read and ignored."""
    with pytest.raises(SystemExit) as stop:
        main([name, "results", "--adapter.r", "3"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("grun-bench: unrecognized arguments: --adapter.r")


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many runs as the demo leaves, without a model."""
    place = Execution(results=tmp_path_factory.mktemp("results"))
    base = run_config({})
    no_op_references(base, place)
    for seed in range(30):
        no_op(dataclasses.replace(base, seed=seed), place, gate_thresholds=(0.5, 0.9), study="s")
    return Path(str(place.results))


def _started(*command_lines: Sequence[str]) -> tuple[set[str], float]:
    """(what a process of its own imported for some commands, its seconds of CPU)."""
    code = (
        "import json, sys\nfrom bench.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, json.dumps(command_lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return set(done.stdout.splitlines()[-1].split()[1:]), seconds


def test_help_and_errors_in_the_words_import_nothing_heavy() -> None:
    wrong = [["tarin"], ["train", "--colour", "red"], ["train", "--num-workers", "0"], ["train", "--adapter.rank"]]
    wrong += [["sweep", "none.yaml", "--time-budget", "0"], ["pareto", "results", "--where", "method"]]
    imported, _ = _started(["--help"], *([name, "--help"] for name in COMMANDS), *wrong)
    assert "pydantic" in imported
    assert imported & {*HEAVY, *PARQUET} == set()


def test_help_comes_at_once() -> None:
    imported, seconds = _started(["--help"])
    assert imported & {*HEAVY, *PARQUET} == set()
    assert seconds < 1.5, "a fifth of that on an idle machine"


def test_what_reads_results_imports_no_model_code(many_rows: Path) -> None:
    imported, seconds = _started(["pareto", str(many_rows)])
    assert imported & set(HEAVY) == set()
    assert set(PARQUET) <= imported, "it did read them"
    assert seconds < 4.5, "a third of that on an idle machine"


def test_the_page_imports_no_model_code() -> None:
    """All that `report` imports; what it draws takes ten seconds, and imports nothing more."""
    code = "import sys, bench.page.report, bench.reports.comparison, bench.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} & set(HEAVY) == set()


def test_version_names_what_a_result_depends_on(capsys: Captured) -> None:
    """One version, in pyproject.toml; the file for citations repeats it."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    said = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    root = Path(__file__).parents[2]
    assert said["grun-bench"] == tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {said['grun-bench']}\n" in (root / "CITATION.cff").read_text()
    assert {"python", "torch", "ray", "commit"} <= said.keys()
