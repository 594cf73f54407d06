"""What docs/results.md shows of docs/data is what the rows there say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reports.comparison import compare
from bench.reports.gates import gates_table
from bench.reports.states import states_table
from bench.reports.table import methods_table, repeated
from bench.results.requests import scan_requests
from bench.results.storage import location
from bench.results.store import scan

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = sorted(path for path in (DOCS / "data").iterdir() if path.is_dir())
SEQUENCES = sorted(path.parent for path in (DOCS / "data").glob("*/*/sequences"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_table_is_made_of_its_rows(folder: Path) -> None:
    lines = list(methods_table(repeated(compare(folder), location(folder))))
    assert (folder / "table.md").read_text().splitlines() == lines


@pytest.mark.parametrize("folder", SEQUENCES, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_published_table_of_sequences_is_made_of_its_rows(folder: Path) -> None:
    of = compare(folder)
    lines = list(states_table(scan_requests(folder), of.references))
    assert (folder / "requests.md").read_text().splitlines() == lines
    assert (folder / "requests.md").read_text() in (DOCS / "results.md").read_text()


def test_the_table_of_gates_is_made_of_its_rows() -> None:
    """It shows some of them: each of its lines is one of the rows', to the last digit."""
    folders = [DOCS / "data" / "smollm2", DOCS / "data" / "smollm2" / "generated"]
    made = {line for folder in folders for line in gates_table(scan(location(folder), "gates", "").to_dicts())}
    _, section = (DOCS / "results.md").read_text().split("\n## A hundred requests at the gate on SmolLM2\n")
    shown = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(shown) > 10
    assert [line for line in shown if line not in made] == []


def test_the_first_table_is_the_real_llms() -> None:
    first, *_ = (line for line in (DOCS / "results.md").read_text().splitlines() if line.startswith("| "))
    assert (DOCS / "data" / "smollm2" / "table.md").read_text().startswith(first)
    assert (DOCS / "data" / "smollm2" / "table.md").read_text() in (DOCS / "results.md").read_text()
