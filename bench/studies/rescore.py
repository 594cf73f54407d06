"""Score stored items anew: after a metric was added or changed, nothing is trained or generated again."""

from bench.content import digest
from bench.evaluation.score import score
from bench.results import store
from bench.results.columns import METRICS
from bench.results.settings import setting
from bench.results.storage import Folder


def rescore(folder: Folder) -> tuple[int, int]:
    """Write every finished run's metrics anew; returns (runs rescored, runs whose items are missing or damaged).

    Metrics that an older run has no raw values for stay null. Raises UserError where the folder holds no runs.
    """
    runs = store.scan_runs(folder).filter(status="ok").sort("created_at").to_dicts()
    retain_models = {
        digest(setting(row["config_json"])): row["run_key"] for row in runs if row["method"] == "retain_model"
    }
    rescored = 0
    for row in runs:
        items = store.read_items(folder, row["run_key"])
        if items is None:
            continue
        shared = setting(row["config_json"])
        shared["evaluation"].pop("after", None)  # its retain model was measured as it is
        gold = retain_models.get(digest(shared))
        gold_items = store.read_items(folder, gold) if gold else None
        scores = score(items, gold_items, row["gate_threshold"] or 0.0)
        store.write_run(folder, row | dict.fromkeys(METRICS) | scores)
        rescored += 1
    return rescored, len(runs) - rescored
