"""The shipped cluster descriptions: what Ray's own schema and an allow-list can say of them without a cloud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from bench.cluster import connect as cluster

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "clusters/gcp.yaml", "clusters/on_premise.yaml")
CLOUDS = FILES[:2]
NODE_CONFIG_KEYS = {
    "aws": {
        "BlockDeviceMappings",
        "IamInstanceProfile",
        "InstanceMarketOptions",
        "InstanceType",
        "MetadataOptions",
        "SecurityGroupIds",
    },
    "gcp": {"disks", "machineType", "metadata", "networkInterfaces", "scheduling", "serviceAccounts"},
}
"""Arguments of EC2's create_instances, fields of Compute Engine's instances.insert, that the files use: Ray hands them
on unseen, so a slip would only show there."""


def _description(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_rays_schema_takes_it(file: str) -> None:
    validate_config(prepare_config(_description(file)))


@pytest.mark.parametrize("file", FILES)
def test_no_room_of_the_product_is_left_behind(file: str) -> None:
    """rsync leaves out a name without a slash wherever it stands: `results` would take bench/results/ too."""
    names = {pattern for pattern in _description(file)["rsync_exclude"] if "/" not in pattern}
    rooms = {path.name for package in ("bench", "grun", "pyvene_custom") for path in (ROOT / package).rglob("*")}
    assert not names & (rooms | {"bench", "grun", "pyvene_custom", "search_spaces"})


@pytest.mark.parametrize("file", CLOUDS)
def test_node_configs_hold_known_keys(file: str) -> None:
    description = _description(file)
    for node_type in description["available_node_types"].values():
        assert set(node_type["node_config"]) <= NODE_CONFIG_KEYS[description["provider"]["type"]]


@pytest.mark.parametrize("file", CLOUDS)
def test_workers_are_spot_gpus_from_none_and_the_head_trains_nothing(file: str) -> None:
    description = _description(file)
    head, gpu = (description["available_node_types"][name] for name in ("head", "gpu"))
    assert description["head_node_type"] == "head"
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= description["max_workers"]
    assert gpu["resources"]["GPU"] >= 1
    assert head["resources"] == {"CPU": 0, cluster.DRIVER: cluster.DRIVERS}
    assert "spot" in str(gpu["node_config"]).lower()
    assert "spot" not in str(head["node_config"]).lower()


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_open_to_the_world(file: str) -> None:
    """Tokens on every node, a dashboard on loopback."""
    description = _description(file)
    starts = [*description["head_start_ray_commands"], *description["worker_start_ray_commands"]]
    assert "0.0.0.0" not in (ROOT / file).read_text()
    for start in starts:
        assert "ray start" not in start or start.startswith("export RAY_AUTH_MODE=token;")
    assert any("--dashboard-host=127.0.0.1" in start for start in starts)
    assert description["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize(("file", "network"), zip(CLOUDS, ("SecurityGroupIds", "networkInterfaces"), strict=True))
def test_the_network_is_the_users_own(file: str, network: str) -> None:
    """Where none is named, Ray takes one that lets in SSH from everywhere."""
    for node_type in _description(file)["available_node_types"].values():
        assert "REPLACE" in str(node_type["node_config"][network])


@pytest.mark.parametrize("file", FILES[1:])
def test_variants_differ_only_in_the_machines(file: str) -> None:
    """What runs on them is cluster.yaml's; on premise, with a shared folder and Ray's first autoscaler."""
    shipped, variant = _description(FILES[0]), _description(file)
    variant["docker"]["run_options"] = [each for each in variant["docker"]["run_options"] if "/mnt/" not in each]
    variant["head_start_ray_commands"] = [
        command.replace("export RAY_enable_autoscaler_v2=0; ", "") for command in variant["head_start_ray_commands"]
    ]
    commands = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    for key in ("docker", "file_mounts", "rsync_exclude", "idle_timeout_minutes", *commands):
        assert variant[key] == shipped[key], key


def test_its_ray_is_the_pinned_one() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for kind in ("head_image", "worker_image"):
        assert f":{pinned[1]}-" in _description("cluster.yaml")["docker"][kind]


def test_a_cluster_that_can_grow_counts_as_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its start it has no GPU at all; eight nodes of one GPU may come."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "tune_driver": 1000.0})
    monkeypatch.setattr(cluster, "BOOTSTRAP", str(tmp_path / "none.yaml"))
    assert cluster.possible_resources() == {"CPU": 2.0, "tune_driver": 1000.0}
    monkeypatch.setattr(cluster, "BOOTSTRAP", str(ROOT / "cluster.yaml"))
    assert cluster.possible_resources() == {"CPU": 32.0, "GPU": 8.0, "tune_driver": 1000.0}
