"""YAML files, read and written; folders that are to be made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from grun.errors import UserError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML (or JSON) file that holds a mapping. Raises UserError where it is missing or is something else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"cannot be read ({type(error).__name__}); give a YAML file") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(str(path), f"is not valid YAML ({error})") from error
    if not isinstance(data, dict) or not data:
        raise UserError(str(path), "is empty or not a mapping; write `key: value` lines")
    return data


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """`yaml_text` as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml_text(data))


def check_new_folder(field: str, folder: Path) -> None:
    """Raises UserError naming the field where something is there, but for an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(field, f"{folder} is there already, and not empty; name another folder")


def yaml_text(data: Mapping[str, Any]) -> str:
    """Plain data as YAML, keys in their own order, short lists on one line."""
    return yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False, default_flow_style=None, width=100)
