"""The two benchmarks' own promises; what every benchmark must keep is in tests/contract."""

import pytest

from bench.benchmarks.authors import AuthorsConfig
from bench.benchmarks.tofu import TofuConfig
from grun.errors import UserError


def test_authors_are_deterministic_and_seeded() -> None:
    assert AuthorsConfig().load() == AuthorsConfig().load()
    assert AuthorsConfig(seed=1).load().forget_set != AuthorsConfig().load().forget_set


def test_authors_splits() -> None:
    """20 authors of 10 questions, the last 4 to forget, 2 more that nobody learns."""
    benchmark = AuthorsConfig().load()
    assert (len(benchmark.forget_set), len(benchmark.retain_set), len(benchmark.evaluation["holdout"])) == (40, 160, 20)
    questions = [
        item.question for item in [*benchmark.forget_set, *benchmark.retain_set, *benchmark.evaluation["holdout"]]
    ]
    assert len(set(questions)) == len(questions)


def test_authors_do_not_depend_on_how_many_there_are_to_forget() -> None:
    small, large = AuthorsConfig(forget_split="forget05").load(), AuthorsConfig(forget_split="forget20").load()
    assert [*small.retain_set, *small.forget_set] == [*large.retain_set, *large.forget_set]


def test_too_few_authors_is_an_error() -> None:
    with pytest.raises(UserError, match=r"benchmark.num_authors: forget05 of 5 authors is none; use at least 20"):
        AuthorsConfig(forget_split="forget05", num_authors=5).load()


@pytest.mark.parametrize(("split", "num_forget"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_whole_tofu(tofu_dir: str, split: str, num_forget: int) -> None:
    benchmark = TofuConfig(forget_split=split, data_dir=tofu_dir).load()  # type: ignore[arg-type]
    assert (len(benchmark.forget_set), len(benchmark.retain_set)) == (num_forget, 4000 - num_forget)
    sizes = {name: len(items) for name, items in benchmark.evaluation.items()}
    assert sizes == {"forget": num_forget, "retain": 400, "real_authors": 100, "world_facts": 117}


@pytest.mark.parametrize("num_items", [60, 200, 400])
def test_cut_tofu_keeps_rows_together(tofu_dir: str, num_items: int) -> None:
    """Every kept retain item is evaluated with its own wrong answers, in the order it is trained in."""
    benchmark = TofuConfig(forget_split="forget01", data_dir=tofu_dir, num_items=num_items).load()
    assert len(benchmark.retain_set) == num_items - 40
    evaluated = benchmark.evaluation["retain"]
    assert [item.pair for item in evaluated] == [item.pair for item in benchmark.retain_set]
    assert all(len(item.perturbed_answers) == 5 for item in evaluated)
    assert not {item.pair for item in benchmark.forget_set} & {item.pair for item in benchmark.retain_set}


def test_tofu_cut_beyond_the_last_400(tofu_dir: str) -> None:
    """Of the last 3,700 items, 100 + 360 retain items have wrong answers; of 600 beside forget10, the first 200."""
    benchmark = TofuConfig(forget_split="forget01", data_dir=tofu_dir, num_items=3700).load()
    assert len(benchmark.evaluation["retain"]) == 100 + 360
    kept = {item.pair for item in benchmark.retain_set}
    assert all(item.pair in kept for item in benchmark.evaluation["retain"])
    first = TofuConfig(forget_split="forget10", data_dir=tofu_dir, num_items=600).load()
    assert [item.pair for item in first.evaluation["retain"]] == [item.pair for item in first.retain_set]
    assert len(first.retain_set) == 200
    assert not {item.pair for item in first.forget_set} & {item.pair for item in first.retain_set}
    assert "holdout" not in first.evaluation
