"""How the suite is run: with what environment, in which order, in which processes. Fixtures: shared_fixtures.py."""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is expected here is what a CPU says
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # here and in what tests start: threads of two processes would fight

LONGEST = (
    "integration/test_pretrained.py",
    "integration/test_planning.py",
    "integration/test_faults.py",
    "integration/test_teaching.py",
    "integration/test_sequential.py",
    "integration/test_workers.py",
    "integration/test_sweep.py",
    "contract/test_methods.py",
    "integration/test_shipped_spaces.py",
    "integration/test_prefix_cache.py",
    "integration/test_engine.py",
    "integration/test_robustness.py",
    "integration/test_storage.py",
    "integration/test_run.py",
    "integration/test_speed.py",
    "integration/test_hub.py",
    "integration/test_metrics.py",
    "integration/test_gated_lora.py",
    "integration/test_wheel.py",
    "integration/test_page.py",
    "integration/test_lm_eval.py",
    "integration/test_wmdp.py",
)


ON_RAY = {
    f"tests/integration/test_{name}.py"
    for name in ("cli", "faults", "sequential", "storage", "sweep", "teaching", "workers")
}
"""Whose tests ask for Ray: all in one process, so that it is started once."""


class WholeFiles(LoadFileScheduling):
    """A process has whole files."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "on Ray" if file in ON_RAY else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles | None:
    return WholeFiles(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first, so that two processes end together; SmolLM2 at the very first, since it does not wait for
    the small models that the next file makes for all others. Units that need those models come last: in `make
    test-quick` the other process is still making them."""
    places = {file: place for place, file in enumerate(LONGEST)}

    def place(item: pytest.Item) -> tuple[int, bool]:
        names = getattr(item, "fixturenames", ())
        waits = item.path.parent.name == "unit" and "target_folder" in names
        return places.get("/".join(item.path.parts[-2:]), len(LONGEST)), waits

    items.sort(key=place)
    asking = {item.nodeid.partition("::")[0] for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    if not asking <= ON_RAY:
        raise pytest.UsageError(f"ON_RAY in tests/conftest.py lacks {', '.join(sorted(asking - ON_RAY))}")


def pytest_configure(config: pytest.Config) -> None:
    """Fixtures, whose imports take seconds, where tests run: not where they are only dealt out."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")
