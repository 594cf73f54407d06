"""Data and models by what is in them, not by where they lie: digests of files, and settings without the paths."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from grun.errors import UserError
from grun.settings import absolute

DIGEST = "_digest"
"""`data_dir_digest` stands beside `data_dir`: what was found there, once it was read."""
MODEL_FILES = (".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt", ".tiktoken")
"""What a model and its tokenizer are read from; a README or an optimizer's state changes neither."""
WEIGHTS = (".safetensors", ".bin", ".gguf")
WHOLE_BYTES = 64 * 2**20
"""Weights of more are told by samples: hashing all of an 8B model at each command would take a minute."""
SAMPLE_BYTES, NUM_SAMPLES = 4096, 1024
SETTLED_SECONDS = 2.0
"""A file changed this recently may change again within the same tick of its clock: it is read anew each time."""


def by_content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a config without paths whose content is known: the same data elsewhere are the same setting."""
    return {
        key: by_content(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key + DIGEST not in settings
    }


def digest(data: Any) -> str:
    """A short name for plain data: the same for the same data only."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def files_digest(folder: Path, parts: Iterable[str]) -> str | None:
    """Of those files PART.json that are there, by their names and all they hold; None where none is."""
    files = {part: folder / f"{part}.json" for part in sorted(parts)}
    found = [(part, file_digest(file)) for part, file in files.items() if file.is_file()]
    return _joined(found) if found else None


def local_model(name: str) -> Path | None:
    """A model's folder or GGUF file; None where the name is no such place (`smollm2` is a package)."""
    path = Path(absolute(name))
    found = path.is_dir() or (path.suffix == ".gguf" and path.is_file())
    return path if found and name != "smollm2" else None


def model_digest(place: Path) -> str:
    """Of a model's folder or GGUF file: weights, settings and tokenizer. A PEFT checkpoint's base counts too."""
    if place.is_file():
        return file_digest(place)[:16]
    files = sorted(file for file in place.iterdir() if file.suffix in MODEL_FILES and file.is_file())
    found = [(file.name, file_digest(file)) for file in files]
    adapter = place / "adapter_config.json"
    if adapter in files:
        try:
            base = local_model(json.loads(adapter.read_text())["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(str(adapter), f"names no base model ({type(error).__name__}); mend it") from error
        found += [("base", model_digest(base))] if base and base != place else []
    return _joined(found)


def _joined(found: list[tuple[str, str]]) -> str:
    return xxhash.xxh3_128(json.dumps(found).encode()).hexdigest()[:16]


def file_digest(file: Path, field: str = "") -> str:
    """Looked at once a process, as long as the file stays as it is. field: what an error names; else the file."""
    try:
        status = file.stat()
        is_settled = time.time() - status.st_mtime > SETTLED_SECONDS
        return (_digest if is_settled else _digest.__wrapped__)(file, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, KeyError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error}); give a file that can"
        raise UserError(field or str(file), f"{file} {problem}" if field else problem) from error


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, mtime_ns: int) -> str:
    found = xxhash.xxh3_128(str(size).encode())
    with file.open("rb") as content:
        if file.suffix not in WEIGHTS or size <= WHOLE_BYTES:
            hashlib.file_digest(content, lambda: found)
        else:
            for start in _samples(content, file, size):
                content.seek(start)
                found.update(content.read(SAMPLE_BYTES))
    return found.hexdigest()


def _samples(content: Any, file: Path, size: int) -> list[int]:
    """Where to look: all of a safetensors header and the middle of each tensor; elsewhere at even distances."""
    if file.suffix != ".safetensors":
        return list(range(0, size, size // NUM_SAMPLES))
    begin = 8 + int.from_bytes(content.read(8), "little")
    header = json.loads(content.read(min(begin - 8, size)))
    tensors = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return [*range(0, begin, SAMPLE_BYTES), *(begin + (first + end) // 2 for first, end in tensors)]
