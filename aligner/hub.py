"""The Hugging Face hub: a data set's address with a pinned revision, its rows through `datasets`, and folders that are uploaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aligner import network
from aligner.readers.columnar import dataset_rows
from aligner.records import DataError, Row, UserError

log = logging.getLogger("aligner")
PREFIX = "hub:"
_ADDRESS = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)?(?:@(?P<revision>[^#/]+))?(?:#(?P<config>[^/]+))?(?:/(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True)
class HubAddress:
    """`hub:ORG/NAME[@REVISION][#CONFIG][/SPLIT]`. A revision is a commit, a tag or a branch; a commit never moves."""

    repo: str
    revision: str = "main"
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        config = f"#{self.config}" if self.config else ""
        return f"{PREFIX}{self.repo}@{self.revision}{config}/{self.split}"


def is_hub_address(path: str) -> bool:
    """Whether a path is an address on the hub and not a file."""
    return path.startswith(PREFIX)


def parse_address(text: str, default: str | None = None) -> HubAddress:
    """Read an address; parts that are left out come from `default`. Another repository takes no default revision.

    Raises UserError where it is not one.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UserError(f"'{text}' is not a hub address. Write hub:ORG/NAME[@REVISION][#CONFIG][/SPLIT].")
    given = {name: value for name, value in match.groupdict().items() if value}
    base = parse_address(default) if default and is_hub_address(default) else None
    if base and given.get("repo", base.repo) == base.repo:
        given = {"repo": base.repo, "revision": base.revision, "config": base.config, "split": base.split} | given
    if "repo" not in given:
        raise UserError(f"'{text}' names no repository. Write hub:ORG/NAME[@REVISION][#CONFIG][/SPLIT].")
    return HubAddress(**given)


@lru_cache(maxsize=8)
def _builder(repo: str, revision: str, config: str | None) -> Any:
    if not network.hub_is_offline() and not network.is_reachable(network.hub_address()):
        log.warning("%s cannot be reached: taking what is in the cache", network.hub_address())
        network.use_cached_hub()
    from datasets import load_dataset_builder

    return load_dataset_builder(repo, config, revision=revision)


def commit_of(address: HubAddress) -> str:
    """The commit that the address's revision names now."""
    return str(_opened(address).hash)


def _opened(address: HubAddress) -> Any:
    try:
        return _builder(address.repo, address.revision, address.config)
    except Exception as error:
        raise _cannot_load(address, error) from error


def _cannot_load(address: HubAddress, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    remedy = "Check id, revision and network ('hf auth login' for gated sets), or give a local copy: NAME::PATH"
    return DataError(str(address), None, f"cannot be loaded from the hub ({reason})", remedy)


def read_hub(address: HubAddress) -> Iterator[Row]:
    """Yield every row of a split in order. DataError with row None where it cannot be loaded."""
    builder = _opened(address)
    try:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=address.split)
    except Exception as error:
        raise _cannot_load(address, error) from error
    yield from dataset_rows(rows, str(address))


def is_logged_in() -> bool:
    """Whether there is a token to upload with."""
    from huggingface_hub import get_token

    return bool(get_token())


def upload(folder: Path, repo: str, kind: str, private: bool, message: str, names: list[str] | None = None) -> str:
    """Upload a folder, or its files of these names; where it lies then. `kind`: model or dataset. UserError where
    the hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, repo_type=kind, folder_path=folder, allow_patterns=names, commit_message=message
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{repo}: the hub refuses ({reason}). Log in with 'hf auth login', and check the name."
        ) from error
    return str(done)
