"""The page of a folder that is still being written: served on this machine alone, made anew when runs arrive."""

import html
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.content import digest
from bench.page.report import page
from bench.reports.comparison import Comparison
from bench.results import store
from bench.results.storage import Folder, location
from grun.errors import UserError

HOST = "127.0.0.1"
SHARE = 0.1
"""At most this share of a core goes into pages: the sweep that is watched needs them."""
LATER = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>not yet</title><p>{}</p>'


class Watched:
    """The newest page of a folder, and which one that is."""

    def __init__(self, folder: Folder, compare: Callable[[], Comparison]) -> None:
        """compare: makes a comparison of what the folder holds by then."""
        self._folder, self._compare = location(folder), compare
        self._lock = threading.Lock()
        self._made, self._page, self._rest_until = "", "", 0.0

    def version(self) -> str:
        """Another one when there are other runs, but not before the last page has paid for itself."""
        if time.monotonic() < self._rest_until:
            return self._made
        again = self._folder / store.SEEDS
        places = [folder / table for folder in (self._folder, again) for table in ("runs", "requests", "sequences")]
        return digest([place.state() for place in places])

    def page(self) -> str:
        """Raises UserError where there is none to be made now."""
        with self._lock:
            version, started = self.version(), time.monotonic()
            if version != self._made:
                self._page, self._made = page(self._compare(), self._folder, version), version
                now = time.monotonic()
                self._rest_until = now + (now - started) * (1 / SHARE - 1)
            return self._page


def server(watched: Watched, port: int) -> ThreadingHTTPServer:
    """Serves `/`, and `/version` of what would be served. port: 0 for any that is free.

    Raises UserError where it cannot listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page from elsewhere whose name was made to lead here has that name in its requests.
            if self.headers["Host"] not in (f"{name}:{self.server.server_port}" for name in (HOST, "localhost")):  # type: ignore[attr-defined]
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/version":
                self._send(HTTPStatus.OK, watched.version(), "text/plain")
            elif self.path == "/":
                try:
                    self._send(HTTPStatus.OK, watched.page(), "text/html")
                except UserError as error:
                    self._send(HTTPStatus.SERVICE_UNAVAILABLE, LATER.format(html.escape(str(error))), "text/html")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Cache-Control", "no-store")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line for each time that a page asks whether it is the newest says nothing."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError("--port", f"{port} cannot be listened on ({error}); give another, or 0 for any") from error
