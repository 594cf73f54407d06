"""`ray up` for real: clusters/on_premise.yaml on network namespaces, a sweep submitted, a node killed in the middle.

A node is what a machine with the container would be: its own network, processes, /tmp, home and sshd, and the folder
that all share. They and the laptop that submits hang on a bridge of their own: nothing of it is seen outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TIMEOUT_S = 300
LAPTOP, HEAD, WORKERS = "10.87.0.1", "10.87.0.2", ("10.87.0.3", "10.87.0.4")
NODE = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/venv /mnt/python /mnt/grun-bench
mount --bind "$VENV" /mnt/venv
mount --bind "$PYTHON" /mnt/python
mount --bind "$SHARED" /mnt/grun-bench
for folder in /tmp /root /run /dev/shm; do mount -t tmpfs tmpfs $folder; done
mkdir -p "$VENV" "$PYTHON" /run/sshd
mount --bind /mnt/venv "$VENV"
mount --bind /mnt/python "$PYTHON"
echo "export PATH=$VENV/bin:$PATH PYTHONPATH=/root/grun-bench" > /root/.bashrc
echo "$PUBLIC_KEY" > /root/authorized_keys
ssh-keygen -q -t ed25519 -N '' -f /root/host_key
echo ready
exec /usr/sbin/sshd -D -f /dev/null -h /root/host_key -o AuthorizedKeysFile=/root/authorized_keys -o StrictModes=no \
    -o UsePAM=no -o PasswordAuthentication=no -o PidFile=none
"""
"""What a node's first process does."""


@dataclass(frozen=True)
class Cluster:
    """A description of nodes that are there, but have no Ray yet."""

    file: Path
    home: Path
    """The user's, on the laptop."""
    shared: Path
    """What the nodes see as /mnt/grun-bench."""
    nodes: dict[str, subprocess.Popen[str]]
    laptop: Sequence[str]
    """Words before a command that is to run on the laptop."""
    environment: dict[str, str]

    def start(self, log: Path, *words: object) -> subprocess.Popen[bytes]:
        """A command on the laptop."""
        with log.open("w") as out:
            return subprocess.Popen(
                [*self.laptop, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def run(self, log: Path, *words: object) -> tuple[int, str]:
        """The same, to its end."""
        process = self.start(log, *words)
        try:
            return process.wait(TIMEOUT_S), log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    missing = [
        tool for tool in ("ip", "unshare", "nsenter", "ssh", "rsync", "/usr/sbin/sshd") if not shutil.which(tool)
    ]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install iproute2 util-linux openssh-server rsync")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]).returncode:
        pytest.skip("namespaces cannot be made here: run as root")
    folder = Path(tempfile.mkdtemp(prefix="gb-"))  # short: sockets lie below it
    processes: list[subprocess.Popen[str]] = []
    try:
        yield _built(folder, processes)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def _built(folder: Path, processes: list[subprocess.Popen[str]]) -> Cluster:
    """Laptop, head and two workers; `processes` gets what holds them."""
    key, shared, token = folder / "key", folder / "shared", folder / "home" / ".ray" / "auth_token"
    shared.mkdir()
    token.parent.mkdir(parents=True)
    token.write_text("5" * 64)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GRUN_BENCH_"))},
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    node_environment = {
        "PATH": os.environ["PATH"],
        "VENV": sys.prefix,
        "PYTHON": sys.base_prefix,
        "SHARED": str(shared),
        "PUBLIC_KEY": key.with_suffix(".pub").read_text(),
    }

    def held(command: str, *namespaces: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["unshare", "--net", *namespaces, "sh", "-c", command],
            stdout=subprocess.PIPE,
            text=True,
            env=node_environment,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    laptop = held("echo ready; exec sleep infinity")
    _in_network(
        laptop,
        "ip link set lo up",
        "ip link add bridge type bridge",
        f"ip addr add {LAPTOP}/24 dev bridge",
        "ip link set bridge up",
    )
    nodes = {}
    for number, address in enumerate((HEAD, *WORKERS)):
        node = held(NODE, "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
        cable = f"node{number}"
        _in_network(
            laptop,
            f"ip link add {cable} type veth peer name eth0 netns {node.pid}",
            f"ip link set {cable} master bridge up",
        )
        _in_network(
            node,
            "ip link set lo up",
            f"ip addr add {address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {LAPTOP}",
        )
        nodes[address] = node
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(_description(key)))
    return Cluster(file, folder / "home", shared, nodes, ["nsenter", "--target", str(laptop.pid), "--net"], environment)


def _in_network(process: subprocess.Popen[str], *commands: str) -> None:
    for command in commands:
        subprocess.run(["nsenter", "--target", str(process.pid), "--net", *command.split()], check=True)


def _description(key: Path) -> dict[str, Any]:
    """The shipped file, but for machines, key and container; each worker gets one CPU."""
    description: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / "on_premise.yaml").read_text())
    del description["docker"], description["setup_commands"]
    description["cluster_name"] = f"grun-bench-test-{os.getpid()}"
    description["provider"] |= {"head_ip": HEAD, "worker_ips": list(WORKERS)}
    description["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    description["worker_start_ray_commands"] = [
        command.replace("ray start", "ray start --num-cpus=1") for command in description["worker_start_ray_commands"]
    ]
    assert "REPLACE" not in str(description)
    return description


def _until(condition: Callable[[], Any], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def test_a_sweep_outlives_one_of_its_nodes_and_the_laptop(
    cluster: Cluster, space: Any, check_whole: Any, tmp_path: Path
) -> None:
    """Up, two trainings at a time, laptop gone, worker gone, laptop back: every row once; down, and nothing is left."""
    log, folder = tmp_path / "log", cluster.shared / "r"
    submit = [BIN / "grun-bench", "submit", cluster.file, space("cluster", 6), "--results", "/mnt/grun-bench/r"]
    code, said = cluster.run(log, *submit)
    assert (code, said.count("\n")) == (2, 1), said
    assert "cannot be reached (Head node of cluster" in said

    code, said = cluster.run(log, BIN / "ray", "up", cluster.file, "--yes")
    assert code == 0, said
    status = [BIN / "ray", "exec", cluster.file, "RAY_AUTH_MODE=token ray status"]
    _until(lambda: "/2.0 CPU" in cluster.run(log, *status)[1], log)

    code, said = cluster.run(log, BIN / "ray", "exec", cluster.file, "RAY_AUTH_MODE=disabled ray status")
    assert (code, "token is missing or incorrect" in said) == (1, True), said
    code, said = cluster.run(log, sys.executable, "-c", f"import socket; socket.create_connection(('{HEAD}', 8265), 5)")
    assert (code, "Connection refused" in said) == (1, True), said

    token = cluster.home / ".ray" / "auth_token"
    given = token.read_text()
    token.write_text("6" * 64)
    code, said = cluster.run(log, *submit)
    assert (code, "is not the token that the cluster was given" in said) == (2, True), said
    token.write_text(given)

    first = cluster.start(log, *submit)
    _until(lambda: _modules(folder) or first.poll() is not None, log)
    assert "2 at a time" in log.read_text()
    os.killpg(first.pid, signal.SIGKILL)
    cluster.nodes[WORKERS[1]].kill()
    assert _modules(folder) < 6
    code, said = cluster.run(log, *submit)
    assert code == 0, said
    assert "going on with job" in said
    check_whole(folder, "cluster", 6)

    code, said = cluster.run(log, *submit)
    assert (code, "nothing to do" in said) == (0, True), said
    code, said = cluster.run(log, *submit, "--gpus-per-worker", 1)
    assert (code, "there are 0 GPUs" in said) == (2, True), said

    code, said = cluster.run(log, BIN / "ray", "down", cluster.file, "--yes")
    assert code == 0, said
    assert not [name for name in _process_names(cluster.nodes[HEAD]) if name in ("gcs_server", "raylet")]


def _modules(folder: Path) -> int:
    return len(list((folder / "modules").glob("[!.]*")))


def _process_names(node: subprocess.Popen[str]) -> list[str]:
    return [process.name() for process in psutil.Process(node.pid).children(recursive=True)]
