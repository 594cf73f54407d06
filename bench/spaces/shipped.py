"""The search spaces and cluster files that come with the package: by name, or copied into a folder to edit."""

import difflib
import shutil
from importlib import resources
from pathlib import Path

from grun.errors import UserError

FILES = Path(str(resources.files("bench.spaces").joinpath("files")))
"""Links to the repository's own in a checkout, copies of them in an installed package."""


def shipped() -> dict[str, Path]:
    """Name → file, e.g. `demo_grun`, `paper/tofu_grun_llama`."""
    spaces = FILES / "search_spaces"
    return {file.relative_to(spaces).with_suffix("").as_posix(): file for file in sorted(spaces.rglob("*.yaml"))}


def space_file(word: str) -> str:
    """The search space that a word of the command line means.

    A file of that name, with or without `.yaml`, goes before a shipped one. Raises UserError where there is neither.
    """
    for file in (Path(word), Path(f"{word}.yaml")):
        if file.is_file():
            return str(file)
    known, name = shipped(), word.removesuffix(".yaml")
    if name in known:
        return str(known[name])
    close = " or ".join(difflib.get_close_matches(name, known))
    hint = f"did you mean {close}?" if close else "name one that `grun-bench spaces` lists, or a file of yours"
    raise UserError(word, f"is no file and no shipped search space; {hint}")


def copy_to(folder: Path) -> None:
    """Every shipped file, as the repository has them. Raises UserError, and copies nothing, where one is there."""
    for name in sorted(each.name for each in FILES.iterdir()):
        if (folder / name).exists():
            raise UserError(str(folder), f"has {name} already, which is not overwritten; name another folder")
    try:
        shutil.copytree(FILES, folder, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(str(folder), f"cannot be written ({error.strerror}); name another folder") from None
