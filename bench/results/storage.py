"""A folder or a file of results: on this machine, on a network path, or in an object store (s3://, gs://).

One file is written whole or not at all, and its readers see all of it or nothing: on a disk by renaming, in an object
store because a put is like that. All are reached through pyarrow; AWS_REGION, AWS_ENDPOINT_URL and the usual
credentials say how. What fails for a passing reason is Unreachable; Damaged is only what is proven not to be what was
written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from grun.errors import Damaged, UserError

SUMS = "SHA256SUMS"
"""File of a written folder with the hash of every other one; `sha256sum -c` reads it."""


class Unreachable(UserError, OSError):
    """A place that cannot be read or written now: no such bucket, no network, no permission. `strerror`: why."""


@dataclass(frozen=True)
class Location:
    """Where something lies; `/` goes down. Made by `location`. All that is done to it may raise Unreachable."""

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
            with self._reached() as (store, path):
                store.create_dir(path, recursive=True)

    def open(self) -> Any:
        """A file to read from at any place, for pyarrow. Raises FileNotFoundError."""
        with self._reached() as (store, path):
            return store.open_input_file(path)

    def read(self) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self._reached() as (store, path), store.open_input_file(path) as file:
            return bytes(file.read())

    def write(self, content: bytes) -> None:
        """A file, whole or not at all; what was there is replaced."""
        with self._reached() as (store, path):
            if self.local is None:
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
        with self._reached() as (store, path):
            return bool(store.get_file_info(path).is_file)

    def files(self, suffix: str = "") -> list[Location]:
        """The files directly in this folder, by name; none where there is no folder. Half-written ones are left out."""
        from pyarrow.fs import FileSelector

        with self._reached() as (store, path):
            found = store.get_file_info(FileSelector(path, allow_not_found=True))
        names = sorted(info.base_name for info in found if info.is_file)
        return [self / name for name in names if name.endswith(suffix) and not name.startswith(".")]

    def state(self) -> list[tuple[str, int, int]]:
        """Name, bytes and time of each file directly in this folder: another once a file is written or taken away."""
        from pyarrow.fs import FileSelector

        with self._reached() as (store, path):
            found = store.get_file_info(FileSelector(path, allow_not_found=True))
        files = [info for info in found if info.is_file and not info.base_name.startswith(".")]
        return sorted((info.base_name, info.size, info.mtime_ns or 0) for info in files)

    def remove(self) -> None:
        """A file, or a folder with all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._reached() as (store, path):
            if store.get_file_info(path).is_file:
                store.delete_file(path)
            else:
                store.delete_dir(path)

    def set_aside(self) -> Location:
        """Move a folder to the first free NAME.damaged-N beside it, so that nothing is lost; says where it is now."""
        from pyarrow.fs import FileType

        with self._reached() as (store, path):
            for number in itertools.count(1):
                aside = self.parent / f"{self.name}.damaged-{number}"
                _, there = aside._at()
                if store.get_file_info(there).type == FileType.NotFound:
                    break
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                if self.local is not None:
                    store.move(path, there)
                for file in self.files():  # an object store moves no folders
                    store.move(f"{path}/{file.name}", f"{there}/{file.name}")
        return aside

    @contextlib.contextmanager
    def written_folder(self, last: str) -> Iterator[Path]:
        """Yields a folder to fill, which then stands here with SHA256SUMS, replacing what did.

        last: the file whose presence says that all others are there.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._reached())
            if self.local is None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grun-bench-")))
            else:
                scratch = self.local.with_name(f".tmp-{os.getpid()}-{self.name}")
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            yield scratch
            files = sorted(scratch.iterdir(), key=lambda file: (file.name == last, file.name))
            sums = [f"{_digest(file)}  {file.name}\n" for file in files if file.is_file()]
            (scratch / SUMS).write_text("".join(sums))
            if self.local is not None:
                shutil.rmtree(self.local, ignore_errors=True)
                os.replace(scratch, self.local)
                return
            for file in (scratch / SUMS, *files):
                (self / file.name).write(file.read_bytes())

    @contextlib.contextmanager
    def read_folder(self) -> Iterator[Path]:
        """Yields the folder as a local one: itself, or a copy for as long as it is read.

        Raises Damaged where it has SHA256SUMS, and they are not those of its files.
        """
        with contextlib.ExitStack() as stack:
            local = self.local
            if local is None:
                local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grun-bench-")))
                for file in self.files():
                    (local / file.name).write_bytes(file.read())
            with self._reached():
                self._check(local)
            yield local

    def _check(self, local: Path) -> None:
        if not (local / SUMS).exists():  # written before there were any
            return
        for line in (local / SUMS).read_text().splitlines():
            digest, name = line.split("  ", 1)
            found = _digest(local / name) if (local / name).exists() else None
            if found != digest:
                what = "missing" if found is None else "not what was written"
                raise Damaged(str(self), f"is damaged ({name} is {what}); it has to be made again")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system that this lies in, and the path there; its errors are raised as Unreachable.

        But for FileNotFoundError and for want of space, which callers tell apart.
        """
        try:
            yield self._at()
        except (FileNotFoundError, Unreachable):
            raise
        except OSError as error:
            if is_full(error):
                raise
            why = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
            unreachable = Unreachable(str(self), f"cannot be reached ({why}); nothing was lost, try again")
            unreachable.strerror = why
            raise unreachable from error

    def _at(self) -> tuple[Any, str]:
        scheme, _, path = self.where.rpartition("://")
        return _store(scheme, path.split("/", 1)[0] if scheme else ""), path


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


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def _store(scheme: str, bucket: str) -> Any:
    """What a bucket lies in, or this machine's disks. Says nothing to it yet, but to ask for the region of S3's."""
    from pyarrow import fs  # a seventh of a second, which the command line need not wait for

    if not scheme:
        return fs.LocalFileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or fs.resolve_s3_region(bucket)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(region=region, endpoint_override=endpoint)
