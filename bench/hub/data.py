"""Rows of a data set of the hub."""

import logging
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.hub.repositories import commit_of, trouble
from grun.errors import UserError


class HubPart(NamedTuple):
    """Where a part of a benchmark lies."""

    dataset: str
    configuration: str | None
    split: str
    revision: str | None = None
    """None: the newest."""

    def __str__(self) -> str:
        return f"{self.dataset} ({self.configuration or self.split})"

    def commit(self, field: str) -> str:
        """The commit that is read. Raises UserError for the field where there is none."""
        return commit_of("dataset", self.dataset, self.revision, field)


@cache
def rows_of_hub(part: HubPart, field: str) -> list[Any]:
    """All of them, read once a process; what is in this machine's cache at that commit, without a word to the hub.

    The library asks four things of each part, which are hundreds for a sweep's trials: the hub refuses so many.
    Raises UserError for the field where they cannot be read.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    field = "benchmark.revision" if part.revision else field
    commit = part.commit(field)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said here, in one line
    try:
        name = part.dataset.split("/")[-1]
        known = Cache(repo_id=part.dataset, dataset_name=name, config_name=part.configuration or "default", hash=commit)
        if Path(known.cache_dir).is_dir():  # it is moved there once it is whole
            return list(known.as_dataset(split=part.split).to_list())
        builder = datasets.load_dataset_builder(part.dataset, part.configuration, revision=commit)
        if builder.hash != commit:  # offline, datasets takes the last one that it has
            fix = f"go online, or set benchmark.revision to {builder.hash}"
            raise UserError(field, f"{part} is in the cache, but not its commit {commit}; {fix}")
        builder.download_and_prepare()
        return list(builder.as_dataset(split=part.split).to_list())
    except UserError:
        raise
    except Exception as error:  # gated, broken off, without that configuration: the library raises many kinds
        found = trouble(f"datasets/{part.dataset}", part.revision, error)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = "ask for access where it is gated, or give a folder"
        raise UserError(field, found or f"{part} cannot be read from the hub ({reason}); {fix}") from error
