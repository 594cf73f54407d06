"""The Markdown table of how well gates tell requests apart: a line a row of `gates`."""

import json
from collections.abc import Iterator, Sequence

from bench.results.columns import GATE_SETS, Row

HEADINGS = {
    "own": "own",
    "reworded": "own, in other words",
    "another": "another's",
    "another_first": "another's first",
    "kept": "kept, fitted to",
    "held_back": "kept, held back",
    "kept_reworded": "kept, in other words",
    "real_authors": "real authors",
    "world_facts": "world facts",
    "strangers": "authors in no set",
    "no_set": "general, in no set",
}


def gates_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown, in the rows' order: of each set of prompts the share that opens a gate."""
    sets = [name for name in GATE_SETS if any(row[f"{name}_openings"] is not None for row in rows)]
    headings = ("model", "layer", "requests", "gates", "threshold", *(HEADINGS[name] for name in sets), "fit s")
    yield f"| {' | '.join(headings)} |"
    yield "|---|--:|--:|---|--:|" + "--:|" * (len(sets) + 1)
    for row in rows:
        taught = f", taught {row['taught']}" if row["taught"] else ""
        general = "; general questions kept" if json.loads(row["config_json"])["adapter"].get("keep_prompts") else ""
        model = f"{row['model']}{taught}{general}"
        layer = f"{row['gate_layer'] + 1} of {row['num_layers']}"
        shares = [_share(row[f"{name}_openings"]) for name in sets]
        cells = (model, layer, str(row["num_requests"]), row["gate_function"], f"{row['gate_threshold']:g}", *shares)
        yield f"| {' | '.join(cells)} | {row['fit_seconds']:.1f} |"
    counts = {name: sorted({row[f"{name}_prompts"] for row in rows if row[f"{name}_prompts"]}) for name in sets}
    prompts = [" or ".join(map(str, counts[name])) for name in sets]
    yield f"| prompts asked | | | | | {' | '.join(prompts)} | |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
