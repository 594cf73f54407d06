"""A sweep handed to a cluster that `ray up` made: a Ray job, sent through an SSH tunnel and followed to its end."""

import asyncio
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from bench.content import digest
from bench.files import read_yaml, write_yaml
from grun.errors import UserError

# What is not a promise of Ray's, and has to be looked at when Ray is upgraded:
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that report each file that is sent."""
BEFORE_THE_REASON = "The exception is:"
"""What `ray dashboard` prints before the line that says why there is no tunnel."""
LOST_CONNECTION = RuntimeError
"""What following a job's log raises when the connection breaks."""

JOB_SERVER = 8265
"""Port of a head's dashboard, which takes jobs; it listens on the head's loopback alone."""
PATIENCE_S = 120.0
"""Seconds to wait for its first answer."""
TOKEN = "~/.ray/auth_token"
"""What `ray up` gives to every node, and every request has to show."""
SWEEP = "grun_bench_sweep"
"""Where a job's metadata says which sweep it is."""


def submit(
    cluster: str,
    spaces: Mapping[str, Mapping[str, Any]],
    options: Sequence[str],
    shared: str,
    log: Callable[[str], None],
) -> int:
    """Run a sweep on the cluster's head, print what it prints, and return its exit code.

    A sweep that is under way there already is followed, not begun again. Losing the connection does not end it.
    cluster: the file that `ray up` was given. spaces: file name → search space. options: `sweep`'s own.
    shared: where the nodes share prepared models.
    Raises UserError where the cluster cannot be reached, or is lost on the way.
    """
    read_yaml(cluster)
    command = sweep_command(spaces, options, shared)
    asked = digest([command, spaces])
    with _job_server(cluster) as client:
        job = next((each.submission_id for each in client.list_jobs() if _runs(each, asked)), None)
        log(f"going on with job {job}" if job else "sending the job")
        if job is None:
            with tempfile.TemporaryDirectory(prefix="grun-bench-") as folder:
                for name, space in spaces.items():
                    write_yaml(Path(folder) / name, space)
                job = client.submit_job(
                    entrypoint=command, runtime_env={"working_dir": folder}, metadata={SWEEP: asked}
                )
        log(f"to stop it: ray exec {cluster} 'RAY_AUTH_MODE=token ray job stop {job}'")
        try:
            asyncio.run(_print_log(client, job))
        except LOST_CONNECTION:
            raise UserError(
                cluster, "the connection was lost; the sweep goes on, the same command follows it"
            ) from None
        ended = client.get_job_info(job)
    if ended.status == JobStatus.SUCCEEDED:
        return 0
    if ended.driver_exit_code is None:  # it was not the sweep that ended it
        log(f"{ended.status.lower()}: {ended.message}")
    return ended.driver_exit_code or 1


def sweep_command(names: Iterable[str], options: Sequence[str], shared: str) -> str:
    """What the head's shell is given."""
    return shlex.join(["env", f"GRUN_BENCH_SHARED={shared}", "grun-bench", "sweep", *names, *options])


@contextmanager
def _job_server(cluster: str) -> Iterator[JobSubmissionClient]:
    """A client of the head's job server, through a tunnel of `ray dashboard`."""
    if not Path(TOKEN).expanduser().is_file():
        raise UserError(TOKEN, "is missing; put there the token that the cluster was given")
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "dashboard", cluster]
    with tempfile.TemporaryFile("w+") as said:
        tunnel = subprocess.Popen(
            [*command, "--port", str(port), "--remote-port", str(JOB_SERVER)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # its ssh ends with it
        )
        try:
            yield _client(cluster, f"http://127.0.0.1:{port}", tunnel, said)
        finally:
            if tunnel.poll() is None:
                os.killpg(tunnel.pid, signal.SIGTERM)
                tunnel.wait()


def _client(cluster: str, address: str, tunnel: subprocess.Popen[bytes], said: IO[str]) -> JobSubmissionClient:
    """As soon as the tunnel stands. Raises UserError where it does not come to that."""
    headers = {"Authorization": f"Bearer {Path(TOKEN).expanduser().read_text().strip()}"}
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if tunnel.poll() is not None:
            said.seek(0)
            why = said.read().partition(BEFORE_THE_REASON)[2].strip().partition("\n")[0]
            why = why.rstrip("!.") or f"`ray dashboard {cluster}` says more"
            raise UserError(cluster, f"cannot be reached ({why}); is it up? `ray up {cluster}`")
        try:
            return JobSubmissionClient(address, headers=headers)
        except ConnectionError:
            time.sleep(0.5)
        except AuthenticationError:
            raise UserError(TOKEN, "is not the token that the cluster was given; put that there") from None
    raise UserError(cluster, f"its head has not answered for {PATIENCE_S:.0f} s; is it up, and open to your SSH?")


def _runs(job: JobDetails, asked: str) -> bool:
    """Whether this very sweep is under way in it."""
    return (job.metadata or {}).get(SWEEP) == asked and not job.status.is_terminal()


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
