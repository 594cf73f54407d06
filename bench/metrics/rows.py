"""Columns of item rows as arrays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from bench.metrics import Floats
from bench.splits import Rows, Split

Row = Mapping[str, Any]
AnyRow = TypeVar("AnyRow", bound=Row)


def grouped(rows: Iterable[AnyRow], by: str) -> dict[str, list[AnyRow]]:
    """Rows by what they have in a column, in the order in which it is first met."""
    found: dict[str, list[AnyRow]] = {}
    for row in rows:
        found.setdefault(row[by], []).append(row)
    return found


def column(rows: Rows, name: str) -> Floats:
    """One value an item: [items]; of gates [items, layers]."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def lists(rows: Rows, name: str) -> list[Floats]:
    """As many values an item as there are, such as those of its wrong answers."""
    return [np.array(row[name], dtype=np.float64) for row in rows]


def counts(rows: Rows, answer: str) -> list[Floats]:
    """Tokens behind each nll of an item's `answer`, `paraphrase` or `wrong` ones; 1 where nobody counted them.

    So it is in what another tool logged: its nll is a mean over tokens already.
    """
    counted = [(row[f"{answer}_nll"], row[f"{answer}_tokens"]) for row in rows]
    return [np.array(np.ones_like(nll) if number is None else number, dtype=np.float64) for nll, number in counted]


def have(rows: Rows, name: str) -> bool:
    """Whether every row has that value, or list of at least one."""
    return all(row[name] is not None and row[name] != [] for row in rows)


def own_tokens(row: Row, name: str, split: Split) -> Sequence[Any]:
    """Values of the answer's tokens, without the one that ends a question's turn; passages have no such token.

    Whoever gives an answer word for word knows it, however it goes on. As open-unlearning since its pull request 101.
    """
    return row[name][:-1] if split.kind == "question" else row[name]
