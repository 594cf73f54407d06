"""`make setup` without a network: whether torch's CPU index is used, by a stand-in for python that notes its words."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$@" >> pip.log ;;
    *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `make setup` reads, on a machine without a GPU."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", STAND_IN.format(python=sys.executable)), ("nvidia-smi", "#!/bin/sh\nexit 9\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def index() -> Iterator[str]:
    """A server on loopback that has any page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
        server.shutdown()


def _set_up(checkout: Path, index: str) -> tuple[str, str]:
    """(what it said on either stream, the words that pip was given for torch)."""
    command = ["make", "--no-print-directory", "setup", "PYTHON=python", f"TORCH_CPU={index}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    first, commands, tests = (checkout / "pip.log").read_text().splitlines()
    assert commands.endswith("-e ."), "all that a demo waits for"
    assert tests.endswith("-e .[dev,gguf,lm-eval]")
    return done.stdout + done.stderr, first


def test_the_cpu_index_is_used_where_it_answers(checkout: Path, index: str) -> None:
    said, words = _set_up(checkout, index)
    assert words.endswith(f"torch --extra-index-url {index}")
    assert "torch for the CPU: no GPU found" in said


def test_an_index_that_does_not_answer_is_one_line_and_left_out(checkout: Path) -> None:
    """pip would warn of it once a package, ten times. The port was free a moment ago: nobody listens there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        silent = f"http://127.0.0.1:{probe.getsockname()[1]}/whl/cpu"
    said, words = _set_up(checkout, silent)
    assert words.endswith(" torch")
    assert said.count(f"{silent} does not answer") == 1
    assert "Traceback" not in said
