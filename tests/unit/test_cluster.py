"""The shipped cluster description: what Ray's own schema and an allow-list can say of it without a cloud."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from bench import cluster

ROOT = Path(__file__).parents[2]
NODE_CONFIG_KEYS = {
    "BlockDeviceMappings",
    "IamInstanceProfile",
    "InstanceMarketOptions",
    "InstanceType",
    "MetadataOptions",
    "SecurityGroupIds",
}
"""Arguments of EC2's create_instances that the file uses: Ray hands them on unseen, so a slip would only show there."""


@pytest.fixture
def description() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_rays_schema_takes_it(description: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(description)))


def test_node_configs_hold_known_keys(description: dict[str, Any]) -> None:
    for node_type in description["available_node_types"].values():
        assert set(node_type["node_config"]) <= NODE_CONFIG_KEYS


def test_workers_are_spot_gpus_from_none_and_the_head_trains_nothing(description: dict[str, Any]) -> None:
    head, gpu = (description["available_node_types"][name] for name in ("head", "gpu"))
    assert description["head_node_type"] == "head"
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= description["max_workers"]
    assert gpu["resources"]["GPU"] >= 1
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert head["resources"] == {"CPU": 0, cluster.DRIVER: cluster.DRIVERS}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_nothing_is_open_to_the_world(description: dict[str, Any]) -> None:
    """Tokens on every node, a dashboard on loopback, security groups of the user's own."""
    starts = [*description["head_start_ray_commands"], *description["worker_start_ray_commands"]]
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()
    for start in starts:
        assert "ray start" not in start or start.startswith("export RAY_AUTH_MODE=token;")
    assert any("--dashboard-host=127.0.0.1" in start for start in starts)
    assert description["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for node_type in description["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"]


def test_its_ray_is_the_pinned_one(description: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for kind in ("head_image", "worker_image"):
        assert f":{pinned[1]}-" in description["docker"][kind]


def test_a_cluster_that_can_grow_counts_as_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its start it has no GPU at all; eight nodes of one GPU may come."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "tune_driver": 1000.0})
    monkeypatch.setattr(cluster, "BOOTSTRAP", str(tmp_path / "none.yaml"))
    assert cluster.possible_resources() == {"CPU": 2.0, "tune_driver": 1000.0}
    monkeypatch.setattr(cluster, "BOOTSTRAP", str(ROOT / "cluster.yaml"))
    assert cluster.possible_resources() == {"CPU": 32.0, "GPU": 8.0, "tune_driver": 1000.0}
