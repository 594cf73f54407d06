"""Repositories of the hub: the commit that a name stands for, and in one line why one cannot be read."""

from collections.abc import Iterator
from functools import cache
from typing import Literal

from grun.errors import UserError


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` as its two parts; None: it names no revision."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


@cache
def commit_of(kind: Literal["model", "dataset"], repository: str, revision: str | None, field: str) -> str:
    """The commit that a branch or a tag is now; asked once a process, so that all it reads is of one commit.

    Where the hub cannot be reached, the one that it was when it last could.
    revision: None: the newest. Raises UserError for the field where there is no such repository or revision.
    """
    from huggingface_hub import HfApi, is_offline_mode

    try:
        found = HfApi().resolve_revision(
            repository, repo_type=kind, revision=revision, local_files_only=is_offline_mode()
        )
        return str(found.resolved)
    except Exception as error:  # the client raises many kinds
        where = repository if kind == "model" else f"datasets/{repository}"
        raise UserError(field, trouble(where, revision, error) or f"{repository} is no name on the hub") from error


def trouble(where: str, revision: str | None, error: BaseException) -> str | None:
    """What is wrong with a repository and what to do; None where the error is not of the hub.

    where: its path on the hub. error: what a client of the hub raised, whatever it was made of.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as kinds

    name = where.removeprefix("datasets/")
    fixes = {
        kinds.GatedRepoError: f"is gated; ask for access at {constants.ENDPOINT}/{where}, and log in (hf auth login)",
        kinds.RevisionNotFoundError: f"has no revision {revision}; name one of its branches, tags or commits",
        kinds.RepositoryNotFoundError: "is not on the hub, or private; check its name, or log in (hf auth login)",
        (ConnectionError, kinds.RevisionResolutionError, kinds.LocalEntryNotFoundError): "is not in the cache, and the "
        "hub cannot be reached; go online, or give a folder",
        kinds.HTTPError: "could not be downloaded; run it again, and what is there already is kept",
    }
    chain = list(_causes(error))
    found = (fix for kind, fix in fixes.items() if any(isinstance(each, kind) for each in chain))
    fix = next(found, None)
    return None if fix is None else f"{name} {fix}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those it was made of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
