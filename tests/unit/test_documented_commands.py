"""Every `grun-bench …` that README, docs, Makefile and comments name is one: its words, its options, its settings."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cli.commands import COMMANDS
from bench.cli.main import parsed
from bench.cli.options import CONFIG_SECTIONS
from bench.config import overlay, run_config
from bench.files import read_yaml
from bench.spaces.shipped import space_file
from grun.errors import UserError

ROOT = Path(__file__).parents[2]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMENTED = [
    *sorted((ROOT / "search_spaces").rglob("*.yaml")),
    ROOT / "cluster.yaml",
    *sorted((ROOT / "clusters").glob("*.yaml")),
]
NAME = "grun-bench"


def _blocks(text: str) -> Iterator[str]:
    """Command lines of the code blocks, continued lines joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(f"{NAME} "):
                yield line


def _ticked(text: str) -> Iterator[str]:
    """What stands in backticks outside code blocks and begins with the command's name; a mere mention asks for help."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for words in re.findall(r"`([^`]+)`", prose):
        if words.startswith(f"{NAME} "):
            yield " ".join(words.split()) + (" --help" if len(words.split()) == 2 else "")


def _commented(file: Path) -> Iterator[str]:
    """Command lines in comments of a YAML file; where only options are named, of a sweep of that file."""
    for comment in re.findall(r"^\s*# *(.*)$", file.read_text(), re.MULTILINE):
        if comment.startswith(f"{NAME} "):
            yield comment
        yield from _ticked(comment)
        for options in re.findall(r"(?<!\S)--\w[\w.-]* [^-#(`]\S*(?: --\w[\w.-]* \S+)*", comment):
            if NAME not in comment and "`" not in comment:
                yield f"{NAME} sweep {file.relative_to(ROOT)} {options}"


def _made(*words: str) -> list[str]:
    """What `make` would run of it."""
    printed = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line.strip() for line in printed.replace("\\\n", " ").splitlines()]
    return [line[line.index(f"bin/{NAME} ") + 4 :] for line in commands if f"bin/{NAME} " in line]


def _named() -> list[str]:
    lines = [line for file in PROSE for line in (*_blocks(file.read_text()), *_ticked(file.read_text()))]
    lines += [line for file in COMMENTED for line in _commented(file)]
    lines += [*_made("demo", "bench", "results"), *_made("bench", "results", "TOFU=/tofu")]
    return sorted(set(lines))


def check(line: str) -> None:
    """Raises UserError, or what ends the process, where the command line is none.

    Its words are parsed, each dataclass that its options make is made, and its settings make a RunConfig, alone or on
    top of each file's own.
    """
    words = shlex.split(line, comments=True)[1:]
    words = [name for word in words for name in (sorted(map(str, ROOT.glob(word))) if "*" in word else [word])]
    try:
        _, options = parsed(words)
    except SystemExit as ended:
        if ended.code == 0:  # --help
            return
        raise
    given = vars(options)
    if "device" in given or "num_workers" in given or "settings" in given:
        options.execution("results")
    if "num_trials" in given:
        options.pool()
    files = given.get("files") or [given["file"]] if given.get("file") or given.get("files") else []
    named = [file for file in files if not file.startswith("results/")]
    shipped = [ROOT / file if (ROOT / file).is_file() else space_file(file) for file in named]
    bases = [read_yaml(file).get("base", {}) for file in shipped] or [{}]
    for base in bases:
        run_config(overlay(base, options.settings))
    if "cluster" in given:
        assert (ROOT / options.cluster).is_file(), options.cluster


@pytest.mark.parametrize("line", _named())
def test_a_command_that_is_named_is_one(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        check(line)
    except (SystemExit, UserError) as error:
        raise AssertionError(f"{line}\n{capsys.readouterr().err}{error}") from None


def test_each_place_names_some() -> None:
    """None of the ways to find them finds nothing."""
    named = " \n".join(_named())
    for found in (
        "sweep search_spaces/demo_*.yaml",
        "submit cluster.yaml",
        "submit clusters/",
        "seeds results/methods",
    ):
        assert found in named
    assert "benchmark --output docs/benchmarks.md" in named, "of the Makefile"
    assert "compact --help \n" in named, "in backticks"
    assert re.search(r"sweep search_spaces/tofu_\w+.yaml --model tiny", named), "in a comment of a search space"
    assert len(set(_blocks((ROOT / "README.md").read_text()))) > 20


def test_under_each_figure_stands_the_command_that_draws_it() -> None:
    """A new one among docs/ needs that too: it is shown somewhere, and what follows it begins with a command."""
    named, shown = set(_named()), set()
    for file in PROSE:
        for figure, below in re.findall(r"!\[[^]]*\]\(([^)]+)\)\n\n(.*?)(?:\n\n|\Z)", file.read_text(), re.DOTALL):
            shown.add((file.parent / figure).resolve())
            drawn = re.match(rf"(?:Drawn by )?`({NAME} [^`]+)`", below)
            assert drawn is not None, f"{file.name}: no command under {figure}"
            assert " ".join(drawn[1].split()) in named, "so that it is parsed, too"
    assert shown == {file for kind in ("png", "svg") for file in (ROOT / "docs").rglob(f"*.{kind}")}


def test_an_option_that_is_named_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone in backticks: `--shard`, `--adapter lora --adapter.r 8`."""
    helps = []
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            parsed([command, "--help"])
        helps.append(capsys.readouterr().out)
    known = set(re.findall(r"--\w[\w-]*", "".join(helps))) | {
        f"--{section.replace('_', '-')}" for section in CONFIG_SECTIONS
    }
    named = {
        option.split(".")[0].replace("_", "-")
        for file in PROSE
        for words in re.findall(r"`(--[^`]+)`", file.read_text())
        for option in re.findall(r"--\w[\w.-]*", words)
    }
    assert len(named) > 5
    assert named <= known


@pytest.mark.parametrize(
    "typo",
    [
        "grun-bench swep search_spaces/demo_grun.yaml",
        "grun-bench sweep search_spaces/demo_grun.yaml --result results/mine --num-trial s",
        "grun-bench sweep search_spaces/none.yaml",
        "grun-bench train --forget-los npo",
        "grun-bench train --forget-loss nop",
        "grun-bench train --adapter.layer 2,3,5",
        "grun-bench train --num-workers 0",
        "grun-bench sweep search_spaces/demo_grun.yaml --time-budget 0",
        "grun-bench pareto",
        "grun-bench pareto results/mine --adapter lora",
        "grun-bench reports",
    ],
)
def test_a_typo_would_be_found(typo: str) -> None:
    with pytest.raises((SystemExit, UserError)):
        check(typo)
