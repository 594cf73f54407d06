"""What the page is made of: methods' names, settings as YAML, which generations are shown of many."""

from __future__ import annotations

import math
from typing import Any, get_args

import polars as pl
import pytest
import yaml

from bench.page.explorer import _sample, _short, _yaml
from bench.reports.names import NAMES, drawn_by, name_of, rank
from grun.adapters import AdapterConfig
from grun.forget_losses import ForgetLossConfig


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("grun+npo", "GRUN + NPO"),
        ("grun_latched+ce_u", "latched GRUN + CE-U"),
        ("gated_lora+idk", "gated LoRA + IDK"),
        ("grun+rmu+rmu_mse", "GRUN + RMU + MSE"),
        ("eco", "ECO"),
        ("their_adapter+their_loss", "their adapter + their loss"),
    ],
)
def test_names_as_people_write_them(method: str, name: str) -> None:
    assert name_of(method) == name


def test_all_of_ours_have_a_name() -> None:
    """And what is not ours comes last in a list of methods."""
    ours = {kind.name for union in (AdapterConfig, ForgetLossConfig) for kind in get_args(union)} - {"none"}
    assert ours <= NAMES.keys()
    assert sorted(["theirs", "lora+npo", "grun+npo", "grun+idk"], key=rank) == [
        "grun+idk",
        "grun+npo",
        "lora+npo",
        "theirs",
    ]


def test_what_was_unlearned_elsewhere_keeps_the_name_it_was_given() -> None:
    """Though it has a plus in it, which parts our own methods."""
    assert drawn_by({"adapter": "external", "method": "a+b"}) == ("unlearned elsewhere", "a+b")
    assert drawn_by({"adapter": "eco", "method": "eco"}) == ("ECO", "no loss")


@pytest.mark.parametrize("value", [1e-05, 2.5e-07, 1e22, 1.0, 3, [0.5, 1.0, 1e-06], "1e-05", "a: b #c", None, True, []])
def test_a_value_is_the_same_from_yaml(value: Any) -> None:
    """A float stays a float: layers [1] and [1.0] are different layers, and YAML takes 1e-05 for a word."""
    read = yaml.safe_load(f"key: {_yaml(value)}")["key"]
    assert (read, str(read)) == (value, str(value))


def test_numbers_are_short_and_finite() -> None:
    assert [_short(value) for value in (0.123456, 1234567, math.inf, math.nan, None)] == [
        0.1235,
        1234567,
        None,
        None,
        None,
    ]


def test_items_of_every_kind_are_shown() -> None:
    """Of nine: three of the first forgotten split, of ten items each third; three of the first kept one; three for
    the three others together."""
    splits = ("holdout", "retain", "forget", "forget_4_bit", "world_facts")
    rows = [{"split": split, "item_index": place} for split in splits for place in range(10)]
    shown = [(row["split"], row["item_index"]) for row in _sample(pl.DataFrame(rows), 9)]
    assert shown == [
        *(("forget", place) for place in (0, 3, 6)),
        *(("retain", place) for place in (0, 3, 6)),
        *((split, 0) for split in ("forget_4_bit", "world_facts", "holdout")),
    ]
