"""What ruff cannot check of the house: how long a folder, a file and a function may be, and each file's first line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("bench", "grun", "pyvene_custom")
FOLDER_LINES, FILE_LINES, FUNCTION_LINES = 900, 300, 50
"""At most so many lines, blank ones and comments included; a folder without its subfolders."""
EXCEPTIONS = {
    "bench/benchmarks": "a file a benchmark: it grows with each",
}
"""What may be longer, and why: a folder, a file, or a function as file:name."""


def _files() -> list[Path]:
    return sorted(file for package in PRODUCT for file in (ROOT / package).rglob("*.py"))


def _functions(parent: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Each function's name, after those of the classes and functions around it, and its lines from `def` to its end."""
    for node in ast.iter_child_nodes(parent):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{node.name}."
            if not isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                yield prefix + node.name, node.end_lineno - node.lineno + 1
        yield from _functions(node, inner)


def _too_long() -> dict[str, str]:
    """What is over its budget, by name: how long it is, and how long it may be."""
    sizes: list[tuple[str, int, int]] = []
    folders: dict[str, int] = {}
    for file in _files():
        name, text = file.relative_to(ROOT).as_posix(), file.read_text()
        num_lines = len(text.splitlines())
        folder = file.parent.relative_to(ROOT).as_posix()
        folders[folder] = folders.get(folder, 0) + num_lines
        sizes.append((name, num_lines, FILE_LINES))
        sizes += [(f"{name}:{function}", length, FUNCTION_LINES) for function, length in _functions(ast.parse(text))]
    sizes += [(folder, num_lines, FOLDER_LINES) for folder, num_lines in folders.items()]
    return {name: f"{size} lines of {budget}" for name, size, budget in sizes if size > budget}


def test_nothing_is_longer_than_its_budget() -> None:
    """But for the exceptions, each of which is still needed: one that is not is to be taken off the list."""
    too_long = _too_long()
    assert {name: size for name, size in too_long.items() if name not in EXCEPTIONS} == {}
    assert [name for name in EXCEPTIONS if name not in too_long] == []


def test_a_file_says_what_it_is_for() -> None:
    """In the first line of its docstring: a few words at least."""
    first_lines = {file: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0] for file in _files()}
    assert [str(file) for file, line in first_lines.items() if len(line.split()) < 3] == []
