"""docs/papers.md lists all there is, with files that are there and cite what it says."""

import re
from pathlib import Path
from typing import get_args

import pytest

from bench.benchmarks import BenchmarkConfig
from bench.metrics.table import SPLIT_METRICS
from bench.splits import ATTACKS, RUN_METRICS
from grun.adapters import AdapterConfig
from grun.forget_losses import ForgetLossConfig
from grun.retain_losses import RetainLossConfig
from pyvene_custom.gate_functions import GateFunction

ROOT = Path(__file__).parents[2]
PARTS = dict(part.split("\n", 1) for part in (ROOT / "docs" / "papers.md").read_text().split("\n## ")[1:])
ROWS = {
    title: [line.strip("|").split("|") for line in part.split("\n") if line.startswith("| `")]
    for title, part in PARTS.items()
}


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("Forget losses", {kind.name for kind in get_args(ForgetLossConfig)}),
        ("Retain losses", {kind.name for kind in get_args(RetainLossConfig)}),
        ("Adapters", {kind.name for kind in get_args(AdapterConfig)}),
        ("Gates", set(get_args(GateFunction))),
        ("Metrics", {name for metrics in SPLIT_METRICS.values() for name in metrics} | RUN_METRICS.keys()),
        ("Benchmarks", {kind.name for kind in get_args(BenchmarkConfig)}),
        ("Attacks", ATTACKS.keys()),
    ],
)
def test_all_there_is_has_its_source(part: str, names: set[str]) -> None:
    assert {name for row in ROWS[part] for name in re.findall(r"`(\w+)`", row[0])} == names


@pytest.mark.parametrize("row", [row for rows in ROWS.values() for row in rows], ids=lambda row: row[0].strip())
def test_the_file_is_there_and_cites_it(row: list[str]) -> None:
    *_, source, file = row
    text = (ROOT / file.strip(" `")).read_text()
    for paper in re.findall(r"\d{4}\.\d{5}", source):
        assert paper in text, f"{file} does not cite {paper}"
