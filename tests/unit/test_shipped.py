"""Search spaces by name: what is listed, which file a word means, and copies to edit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.main import main
from bench.cli.options import Options
from bench.spaces.shipped import copy_to, shipped, space_file
from grun.errors import UserError

ROOT = Path(__file__).parents[2]
SPACES = ROOT / "search_spaces"


def test_every_file_of_search_spaces_is_listed_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name as `sweep` takes it, then its first comment, in 100 columns."""
    main(["spaces"])
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    assert names == {str(file.relative_to(SPACES))[: -len(".yaml")] for file in SPACES.rglob("*.yaml")}
    assert len(lines) == len(names)
    assert max(map(len, lines)) <= 100
    assert all(line.endswith(".") and len(line.split()) > 4 for line in lines), "a sentence each"
    assert ["demo_lora", "LoRA, as the demo searches it: three forget losses."] in [
        line.split(maxsplit=1) for line in lines
    ]


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("demo_grun", "demo_grun.yaml"):
        assert Path(space_file(word)).samefile(SPACES / "demo_grun.yaml")
    assert Path(space_file("paper/tofu_grun_llama")).samefile(SPACES / "paper" / "tofu_grun_llama.yaml")
    (tmp_path / "demo_grun").mkdir()
    assert Path(space_file("demo_grun")).samefile(SPACES / "demo_grun.yaml"), "a folder is no file"
    (tmp_path / "demo_grun.yaml").write_text("study: mine")
    assert {space_file(word) for word in ("demo_grun", "demo_grun.yaml")} == {"demo_grun.yaml"}
    assert Options(files=["demo_grun", "demo_lora"]).spaces() == ["demo_grun.yaml", str(shipped()["demo_lora"])]


@pytest.mark.parametrize("command", ["sweep", "sequential"])
@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("demo_gurn", "did you mean demo_grun"),
        ("none.yml", "name one that `grun-bench spaces` lists, or a file of yours"),
    ],
)
def test_an_unknown_name_is_one_line(
    command: str,
    word: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([command, word])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"grun-bench: {word}: is no file and no shipped search space; {hint}")
    assert error.count("\n") == 1


def test_init_copies_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files, not links to ours; nothing at all where one of them is there already."""
    folder = tmp_path / "new" / "study"
    main(["init", str(folder)])
    assert capsys.readouterr().out.count("\n") == 1
    for file in [ROOT / "cluster.yaml", *(ROOT / "clusters").glob("*.yaml"), *SPACES.rglob("*.yaml")]:
        copied = folder / file.relative_to(ROOT)
        assert copied.read_bytes() == file.read_bytes()
        assert not copied.resolve().is_relative_to(ROOT)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "cluster.yaml").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["init", str(mine)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"grun-bench: {mine}: has cluster.yaml already, which is not overwritten")
    assert error.count("\n") == 1
    assert [file.name for file in mine.rglob("*")] == ["cluster.yaml"]
    with pytest.raises(UserError, match="below: cannot be written"):
        copy_to(mine / "cluster.yaml" / "below")
