"""Tab completion: what a real bash offers, and that it is what the command line takes."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.cli.commands import COMMANDS
from bench.cli.main import main
from bench.cli.options import split_settings
from bench.config import overlay, run_config
from bench.results.settings import leaves

SETTINGS = ({}, {"adapter": "lora", "forget_loss": "npo"}, {"benchmark": "wmdp", "model": "tiny", "adapter": "full"})


def _script(shell: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["completion", shell])
    return printed.getvalue()


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "grun-bench"
    file.write_text(_script("bash"))
    return file


def _offered(bash: Path, *words: str) -> set[str]:
    """By the function that bash calls at a tab behind the last of the words."""
    code = 'source "$1"; shift; COMP_WORDS=(grun-bench "$@"); COMP_CWORD=$#; _shtab_grun_bench; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, "bash", bash, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_settings(bash: Path, tmp_path: Path) -> None:
    """A command; its option; a key of the adapter that is chosen; what a key may be; a file."""
    assert _offered(bash, "") >= set(COMMANDS)
    assert _offered(bash, "sw") == {"sweep"}
    assert _offered(bash, "sweep", "--num-t") == {"--num-trials", "--num-threads"}
    assert _offered(bash, "train", "--adapter.gate-th") == {"--adapter.gate-threshold"}
    assert _offered(bash, "train", "--engine", "p") == {"plain"}
    assert _offered(bash, "train", "--adapter", "gru") == {"grun"}
    assert {"linear", "mlp_3", "router"} <= _offered(bash, "sweep", "a.yaml", "--adapter.gate-function", "")
    assert _offered(bash, "train", "--evaluation.robustness.quantize", "t") == {"true"}
    assert _offered(bash, "pareto", "results", "--adapter.gate") == set(), "it takes no settings"
    (tmp_path / "mine.yaml").touch()
    assert _offered(bash, "sweep", f"{tmp_path}/mi") == {f"{tmp_path}/mine.yaml"}


def test_every_setting_is_offered_and_everything_offered_is_taken(
    bash: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All keys of some RunConfigs are among them; what is no key stands in the command's help."""
    offered = {word for word in _offered(bash, "train", "--") if "." in word}
    for settings in SETTINGS:
        keys = leaves(run_config(overlay({}, settings)).to_dict())
        nested = {key for key in keys if "." in key and not key.endswith(".name")}
        assert len(nested) > 20
        assert {f"--{key.replace('_', '-')}" for key in nested} <= offered
    for word in offered:
        assert list(split_settings([word, "1"])[1]) == [word[2:].replace("-", "_")]
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = set(re.findall(r"--?[a-z][a-z-]*", capsys.readouterr().out))
        others = {word for word in _offered(bash, command, "-") if not split_settings([word, "1"])[1]}
        assert {"-h", "--help"} <= others <= known


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_the_same(shell: str, bash: Path, tmp_path: Path) -> None:
    """The same words; where the shell is installed, in its own grammar."""
    script = _script(shell)
    named = set(re.findall(r"--?[\w.-]+" if shell == "zsh" else r"-l ([\w.-]+)", script))
    for command in ("train", "pareto", "sweep"):
        for word in _offered(bash, command, "--"):
            assert (word if shell == "zsh" else word.lstrip("-")) in named
    assert all(re.search(rf"\b{name}\b", script) for name in COMMANDS)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
