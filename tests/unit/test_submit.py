"""`grun-bench submit` as far as it goes without a cluster: what is sent, and what is refused before anything is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli import main as cli
from bench.cluster import submit
from bench.spaces.search_space import read_studies

ROOT = Path(__file__).parents[2]
SPACE = str(ROOT / "search_spaces" / "demo_grun.yaml")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last `submit` would have sent."""
    kept: dict[str, Any] = {}

    def keep(cluster: str, spaces: Any, options: Any, shared: str, log: Any) -> int:
        kept.update(cluster=cluster, spaces=spaces, options=options, shared=shared)
        return 7

    monkeypatch.setattr(submit, "submit", keep)
    return kept


def _main(*words: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return stop.value.code


def test_the_sweep_gets_the_options_it_was_given(sent: dict[str, Any]) -> None:
    """A GPU share of 0 is not one left out."""
    given = ("--results", "s3://b/r", "--gpus-per-worker", "0", "--num-trials", "3", "--shard")
    assert _main("submit", "c.yaml", SPACE, *given) == 7
    assert sent["cluster"] == "c.yaml"
    assert cli.parsed(["sweep", SPACE, *sent["options"]]) == cli.parsed(["sweep", SPACE, *given])


def test_search_spaces_are_sent_with_the_settings_laid_in(sent: dict[str, Any], tmp_path: Path) -> None:
    """Two files of one name stay two; on the head they give the studies that they give here."""
    own = tmp_path / "demo_grun.yaml"
    own.write_text((ROOT / "search_spaces" / "demo_lora.yaml").read_text())
    settings = ("--training.num_epochs", "5", "--evaluation.max_items_per_split", "4")
    assert _main("submit", "c.yaml", SPACE, str(own), "--results", "/shared/r", *settings) == 7
    assert list(sent["spaces"]) == ["0-demo_grun.yaml", "1-demo_grun.yaml"]
    for file, space in zip((SPACE, str(own)), sent["spaces"].values(), strict=True):
        there = tmp_path / "there.yaml"
        there.write_text(yaml.safe_dump(space))
        overrides = {"training.num_epochs": 5, "evaluation.max_items_per_split": 4}
        here, sent_there = read_studies(file, overrides, None), read_studies(str(there), {}, None)
        assert [study.definition() for study in sent_there] == [study.definition() for study in here]


def test_prepared_models_are_shared_beside_the_results_unless_told_where(
    sent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRUN_BENCH_SHARED", raising=False)
    _main("submit", "c.yaml", SPACE, "--results", "s3://b/r")
    assert sent["shared"] == "s3://b/r"
    monkeypatch.setenv("GRUN_BENCH_SHARED", "s3://b/models")
    _main("submit", "c.yaml", SPACE, "--results", "s3://b/r")
    assert sent["shared"] == "s3://b/models"


def test_words_reach_the_heads_shell_whole() -> None:
    command = submit.sweep_command(["0-a b.yaml"], ["--results", "/x; rm -r y"], "/x; rm -r y")
    assert shlex.split(command) == [
        *("env", "GRUN_BENCH_SHARED=/x; rm -r y", "grun-bench", "sweep"),
        *("0-a b.yaml", "--results", "/x; rm -r y"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("c.yaml", SPACE), "--results: results/default is not seen by every node"),
        (("c.yaml", SPACE, "--results", "ftp://b/r"), "--results: ftp:// is not known"),
        (("c.yaml", SPACE, "--results", "/r", "--training.num_epochs", "0"), "training.num_epochs: "),
        (("c.yaml", "none.yaml", "--results", "/r"), "none.yaml: is no file and no shipped search space"),
        (("none.yaml", SPACE, "--results", "/r"), "none.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("submit", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"grun-bench: {message}")
    assert said.count("\n") == 1


def test_a_cluster_without_token_or_not_up_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where Ray notes which clusters are up
    monkeypatch.setenv("HOME", str(tmp_path))
    file = ROOT / "clusters" / "on_premise.yaml"
    assert _main("submit", str(file), SPACE, "--results", "/r") == 2
    assert "~/.ray/auth_token: is missing" in capsys.readouterr().err
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    assert _main("submit", str(file), SPACE, "--results", "/r") == 2
    said = capsys.readouterr().err
    assert "cannot be reached (Head node of cluster (grun-bench) not found); is it up? `ray up" in said
    assert said.count("\n") == 1
