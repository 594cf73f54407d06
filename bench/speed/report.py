"""Records of `bench.speed.measure` as JSON, and as Markdown for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

Record = Mapping[str, Any]


def read_records(file: Path) -> dict[str, Record]:
    """Records by model; empty where there is no such file."""
    return json.loads(file.read_text()) if file.is_file() else {}


def merged(known: Record, record: Record) -> Record:
    """A record with some sections measured again."""
    new = {section: record[section] for section in record["measured"]}
    return {**record, **known, **new, "measured": {**known.get("measured", {}), **record["measured"]}}


def write_records(file: Path, records: Mapping[str, Record]) -> None:
    """`file` is the Markdown; the JSON lies beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")
    loader = jinja2.PackageLoader("bench.speed", ".")
    page = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["as"] = format
    file.write_text(page.get_template("benchmarks.md.j2").render(records=records))
