"""A small stand-in of the Hugging Face hub on loopback: its layout, its API and its errors, for its own clients.

What is small is answered at once; what the hub keeps in large file storage (weights, Parquet) is a redirect to another
path, with X-Linked-ETag and X-Linked-Size, and is sent from there, in ranges where they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")
LOOPBACK = ("127.0.0.1", 0)
TOKEN = "hf_of_somebody"
"""Whoever sends it is known to the hub, and was granted nothing."""


@dataclass
class Repository:
    """A model's or a dataset's, with every commit it ever had."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    renamed: str | None = None
    """What it is called now."""

    def commit(self, files: Mapping[str, bytes], tag: str | None = None) -> str:
        """Put these files in place of what was there, on main; says the commit's hash."""
        told = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in sorted(files.items())})
        sha = hashlib.sha1(f"{len(self.commits)} {told}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs |= {"main": sha} | ({tag: sha} if tag else {})
        return sha


class Hub:
    """Repositories by `models/NAME` and `datasets/NAME`, once `serving` at `endpoint`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.cut: Counter[str] = Counter()
        """COMMIT/PATH of a large file → how many times its sending is still to break off in the middle."""
        self.asked: Counter[str] = Counter()
        """`METHOD path` of every request, with ` bytes=…` behind it where a range was asked for."""
        self.endpoint = self.storage = ""
        """Where it is, and where its large files are: another host, to which no token goes."""

    def add(self, name: str, files: Mapping[str, bytes], tag: str | None = None, **what: Any) -> str:
        """A repository with one commit, whose hash it says."""
        self.repositories[name] = Repository(**what)
        return self.repositories[name].commit(files, tag)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside, it answers."""
        hub = self

        class OfThisHub(_Handler):
            of = hub

        with ThreadingHTTPServer(LOOPBACK, OfThisHub) as own, ThreadingHTTPServer(LOOPBACK, OfThisHub) as other:
            self.endpoint, self.storage = (f"http://127.0.0.1:{each.server_port}" for each in (own, other))
            for each in (own, other):
                threading.Thread(target=each.serve_forever, daemon=True).start()
            yield
            for each in (own, other):
                each.shutdown()


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class _Handler(BaseHTTPRequestHandler):
    of: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        split = urlsplit(self.path)
        given = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = parse_qs(given or split.query)
        wanted = self.headers.get("Range")
        self.of.asked[f"{self.command} {split.path}" + (f" {wanted}" if wanted else "")] += 1
        try:
            self._route(unquote(split.path), form)
        except _Refused as refused:
            self._send(refused.status, b"{}", refused.headers)

    def _route(self, path: str, form: Mapping[str, list[str]]) -> None:
        if path.startswith("/cdn/"):
            _, _, sha, file = path.split("/", 3)
            content = next(each.commits[sha][file] for each in self.of.repositories.values() if sha in each.commits)
            self._send_file(content, {"ETag": f'"{_sha256(content)}"'}, where=f"{sha}/{file}")
        elif found := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/(.*))?", path):
            kind, name, what, rest = found.groups()
            self._api(f"{kind}/{name}", what or "revision", rest or "main", form)
        elif found := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            dataset, name, revision, file = found.groups()
            self._resolve(f"{'datasets' if dataset else 'models'}/{name}", revision, file)
        else:
            raise _Refused(404, "", "Sorry, we can't find the page you are looking for.")

    def _repository(self, name: str) -> Repository:
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if (found := self.of.repositories.get(name)) is None:
            raise _Refused(404 if is_known else 401, "RepoNotFound", "Repository not found")
        if found.renamed:
            old, new = (each.removeprefix("models/") for each in (name, found.renamed))
            if self.path.startswith("/api/"):
                old, new = name, found.renamed
            raise _Refused(307, "", "", Location=self.path.replace(old, new, 1))
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, Mapping[str, bytes]]:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def _api(self, name: str, what: str, rest: str, form: Mapping[str, list[str]]) -> None:
        repository = self._repository(name)
        revision, _, folder = rest.partition("/")
        sha, files = self._files(repository, revision)
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            about = {"id": name.split("/", 1)[1], "sha": sha, "private": False, "tags": [], "siblings": siblings}
            self._send_json(about | {"gated": "manual" if repository.gated else False})
        elif what == "paths-info":
            paths = [path for path in form["paths"] if path in files or path in _folders(files)]
            self._send_json([_entry(path, files) for path in paths])
        else:
            recursive = form.get("recursive", ["false"])[0].lower() == "true"
            inside = [path for path in (*files, *_folders(files)) if not folder or path.startswith(f"{folder}/")]
            if not inside:
                raise _Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            depth = folder.count("/") + 1 if folder else 0
            self._send_json([_entry(path, files) for path in inside if recursive or path.count("/") == depth])

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        if repository.gated:
            is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            raise _Refused(403 if is_known else 401, "GatedRepo", f"Access to {name} is restricted.")
        sha, files = self._files(repository, revision)
        of_commit = {"X-Repo-Commit": sha}
        if file not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found", **of_commit)
        content = files[file]
        if file.endswith(LARGE):
            linked = {"X-Linked-ETag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            self._send(302, b"", of_commit | linked | {"Location": f"{self.of.storage}/cdn/{sha}/{file}"})
        else:
            self._send_file(content, of_commit | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _send_file(self, content: bytes, headers: dict[str, str], where: str = "") -> None:
        start, end, status = 0, len(content), 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end, status = int(wanted[1]), int(wanted[2] or end - 1) + 1, 206
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._send(status, content[start:end], headers | {"Accept-Ranges": "bytes"}, where)

    def _send_json(self, what: Any) -> None:
        self._send(200, json.dumps(what).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], where: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.of.cut[where] > 0:
            self.of.cut[where] -= 1
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)


def _folders(files: Mapping[str, bytes]) -> list[str]:
    return list(dict.fromkeys(f[:at] for f in files for at in range(len(f)) if f[at] == "/"))


def _entry(path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """A file or a folder as the API lists it."""
    content = files.get(path)
    if content is None:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    entry = {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}
    lfs = {"oid": _sha256(content), "size": len(content), "pointerSize": 128}
    return entry | ({"lfs": lfs} if path.endswith(LARGE) else {})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
