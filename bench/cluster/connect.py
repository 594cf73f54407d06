"""Ray: the cluster that is there, or one on this machine for as long as it is needed."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml

from grun.errors import UserError

DRIVER = "tune_driver"
"""Resource of a process that only waits for its workers: it needs no CPU, but Ray wants it to need something."""
DRIVERS = 1000
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""No tables, phoning home or log files of Ray's own, workers that find relative paths as the driver does, and a Ctrl-C
that ends the command: Tune would end the sweep, and let the command end as if it were done."""
PASSED_ON = (
    "GRUN_BENCH_",
    "HF_HUB_",
    "TOKENIZERS_",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    *ENVIRONMENT,
)
"""Environment variables, by how they begin, that workers on a joined cluster are given."""


BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""Where `ray up` leaves the cluster's description on its head."""


def possible_resources() -> dict[str, float]:
    """What the cluster has, or could have once it has grown: by kind, e.g. CPU and GPU."""
    there = dict(ray.cluster_resources())
    description = Path(BOOTSTRAP).expanduser()
    if not description.is_file():
        return there
    could: dict[str, float] = {}
    for node_type in yaml.safe_load(description.read_text())["available_node_types"].values():
        for kind, each in node_type.get("resources", {}).items():
            could[kind] = could.get(kind, 0.0) + each * node_type.get("max_workers", 0)
    return {kind: max(there.get(kind, 0.0), could.get(kind, 0.0)) for kind in {*there, *could}}


@contextmanager
def connected(log: Callable[[str], None]) -> Iterator[None]:
    """The cluster at RAY_ADDRESS, else one on this machine."""
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    log(f"joining Ray at {address}" if address else "starting Ray")
    # "local": else Ray would join whatever cluster somebody has started on this machine.
    own: dict[str, Any] = {"address": "local", "resources": {DRIVER: DRIVERS}}
    # Other nodes' processes do not inherit this one's environment.
    joined: dict[str, Any] = {
        "runtime_env": {"env_vars": {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}}
    }
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **(joined if address else own))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError("HOME", f"Ray cannot write {error.filename}; set HOME to a folder that is writable") from error
    try:
        yield
    finally:
        ray.shutdown()
