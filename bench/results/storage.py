"""A folder or a file of results: on this machine, on a network path, or in an object store (s3://, gs://).

One file is written whole or not at all, and its readers see all of it or nothing: on a disk by renaming, in an object
store because a put is like that. Object stores are reached through pyarrow; AWS_REGION, AWS_ENDPOINT_URL and the usual
credentials say how.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from grun.errors import UserError


@dataclass(frozen=True)
class Location:
    """Where something lies; `/` goes down. Made by `location`."""

    where: str
    """An absolute path, or a URI without a slash at its end."""

    def __str__(self) -> str:
        return self.where

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.where}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.where.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder it lies in."""
        return Location(self.where.rsplit("/", 1)[0])

    @property
    def local(self) -> Path | None:
        """The path, where it is one."""
        return None if "://" in self.where else Path(self.where)

    def make_folder(self) -> None:
        """With all above it; object stores have none."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)

    def open(self) -> Any:
        """A file to read from at any place, for pyarrow. Raises FileNotFoundError, and OSError."""
        if self.local is not None:
            from pyarrow import OSFile

            return OSFile(str(self.local))
        store, path = self._in_store()
        return store.open_input_file(path)

    def read(self) -> bytes:
        """A file's content. Raises FileNotFoundError, and OSError where it cannot be read."""
        with self.open() as file:
            return bytes(file.read())

    def write(self, content: bytes) -> None:
        """A file, whole or not at all; what was there is replaced. Raises OSError."""
        if self.local is None:
            store, path = self._in_store()
            with store.open_output_stream(path) as out:
                out.write(content)
            return
        self.local.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.local.with_name(f".tmp-{os.getpid()}-{self.name}")
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.local)
        finally:
            scratch.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Whether there is a file here."""
        if self.local is not None:
            return self.local.is_file()
        from pyarrow import fs

        store, path = self._in_store()
        return bool(store.get_file_info(path).type == fs.FileType.File)

    def files(self, suffix: str = "") -> list[Location]:
        """The files directly in this folder, by name; none where there is no folder. Half-written ones are left out."""
        if self.local is not None:
            names = [entry.name for entry in os.scandir(self.local) if entry.is_file()] if self.local.is_dir() else []
        else:
            from pyarrow import fs

            store, path = self._in_store()
            found = store.get_file_info(fs.FileSelector(path, allow_not_found=True))
            names = [info.base_name for info in found if info.type == fs.FileType.File]
        return [self / name for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]

    def remove(self) -> None:
        """A file, or a folder with all in it, if it is there."""
        if self.local is not None:
            if self.local.is_dir():
                shutil.rmtree(self.local, ignore_errors=True)
            else:
                self.local.unlink(missing_ok=True)
            return
        from pyarrow import fs

        store, path = self._in_store()
        with contextlib.suppress(FileNotFoundError):
            if store.get_file_info(path).type == fs.FileType.Directory:
                store.delete_dir(path)
            else:
                store.delete_file(path)

    @contextlib.contextmanager
    def written_folder(self, last: str) -> Iterator[Path]:
        """Yields a folder to fill, which then stands here, replacing what did.

        last: the file whose presence says that all others are there.
        """
        if self.local is not None:
            scratch = self.local.with_name(f".tmp-{os.getpid()}-{self.name}")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                yield scratch
                shutil.rmtree(self.local, ignore_errors=True)
                os.replace(scratch, self.local)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return
        with tempfile.TemporaryDirectory(prefix="grun-bench-") as temporary:
            yield Path(temporary)
            names = sorted(file.name for file in Path(temporary).iterdir())
            for name in sorted(names, key=lambda each: each == last):
                (self / name).write((Path(temporary) / name).read_bytes())

    @contextlib.contextmanager
    def read_folder(self) -> Iterator[Path]:
        """Yields the folder as a local one: itself, or a copy for as long as it is read."""
        if self.local is not None:
            yield self.local
            return
        with tempfile.TemporaryDirectory(prefix="grun-bench-") as temporary:
            for file in self.files():
                (Path(temporary) / file.name).write_bytes(file.read())
            yield Path(temporary)

    def digest(self) -> str:
        """Names this place in a local cache."""
        return hashlib.sha256(self.where.encode()).hexdigest()[:16]

    def _in_store(self) -> tuple[Any, str]:
        scheme, rest = self.where.split("://", 1)
        return _store(scheme, rest.split("/", 1)[0]), rest


Folder = Location | Path | str


def location(where: Folder) -> Location:
    """From a path, made absolute, or from a URI. Raises UserError for a scheme that is neither."""
    if isinstance(where, Location):
        return where
    text = str(where)
    if "://" not in text:
        return Location(str(Path(text).expanduser().resolve()))
    scheme = text.split("://", 1)[0]
    if scheme not in ("s3", "gs"):
        raise UserError("--results", f"{scheme}:// is not known; use a path, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    return Location(text.rstrip("/"))


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space. safetensors says so in words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


@cache
def _store(scheme: str, bucket: str) -> Any:
    """The object store behind a bucket. Says nothing to it yet, but where S3's region has to be asked for."""
    from pyarrow import fs  # a seventh of a second, which the command line need not wait for

    if scheme == "gs":
        return fs.GcsFileSystem()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or fs.resolve_s3_region(bucket)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(region=region, endpoint_override=endpoint)
