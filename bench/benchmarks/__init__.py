"""What is to be forgotten and kept: one file a benchmark, each a config with `load`.

A benchmark is added by writing its file and naming its config in `BenchmarkConfig`. Its config declares, beside `name`:

    splits      what it may evaluate: name → what that is
    objectives  its two scores that a search trades against each other; `{forget_split}` stands for the config's
    headlines   what to show of a run first
    parts       where it reads a folder `data_dir`: the names of those JSON files, which a run's key has the content of

Nothing here imports model code.
"""

from collections.abc import Mapping
from typing import get_args

from bench.benchmarks.authors import AuthorsConfig
from bench.benchmarks.corpora import CorporaConfig
from bench.benchmarks.muse import MuseConfig
from bench.benchmarks.questions import QuestionsConfig
from bench.benchmarks.rwku import RwkuConfig
from bench.benchmarks.tofu import TofuConfig
from bench.benchmarks.wmdp import WmdpConfig
from bench.splits import ATTACKS, Split

LocalBenchmark = CorporaConfig | MuseConfig | QuestionsConfig | RwkuConfig | TofuConfig | WmdpConfig
"""Those that can read a folder."""
HubBenchmark = MuseConfig | RwkuConfig | TofuConfig | WmdpConfig
"""Those that are read from the hub where there is none."""
BenchmarkConfig = AuthorsConfig | LocalBenchmark

SPLITS: Mapping[str, Split] = {
    **ATTACKS,
    **{name: split for benchmark in get_args(BenchmarkConfig) for name, split in benchmark.splits.items()},
}
"""Every split that any benchmark declares, and the attacks."""
HEADLINES: tuple[str, ...] = tuple(dict.fromkeys(name for each in get_args(BenchmarkConfig) for name in each.headlines))
"""Scores to show of a run, where it has them."""


def default_objectives(benchmark: str, forget_split: str) -> tuple[str, ...]:
    """Names of the scores that a benchmark is searched by."""
    (config,) = [each for each in get_args(BenchmarkConfig) if each.name == benchmark]
    return tuple(name.format(forget_split=forget_split) for name in config.objectives)


def hub_commits(benchmark: BenchmarkConfig) -> dict[str, str]:
    """The commit of each data set of the hub that a benchmark reads; none where it is read from a folder."""
    if not isinstance(benchmark, HubBenchmark) or benchmark.data_dir is not None:
        return {}
    parts = [benchmark.hub(part) for part in benchmark.parts]
    return {part.dataset: part.commit("benchmark.revision") for part in parts}
