"""What a repository holds: on the Hub, or in the part of it that the Hub's cache has."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from ..errors import CheckpointError
from ..folder import LARGEST_JSON, read_json
from ..header import DTYPES, read_header
from .progress import Progress, Tally, run_watched
from .repo import HubError, Repo

# Whatever a request may fail with. Depending on its version, huggingface_hub speaks through requests, httpx or httpx2;
# HfHubHTTPError inherits from its client's base class, and the failures of requests are OSErrors.
REQUEST_ERRORS = (*HfHubHTTPError.__bases__, OSError)
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class Listing(Protocol):
    """The files of one revision of a repository, by their paths in it."""

    names: frozenset[str]

    def header(self, name: str) -> Mapping[str, torch.dtype | None] | None:
        """Dtypes of a .safetensors file's tensors, None for those that torch lacks; None if it has no such header."""

    def json(self, name: str) -> dict[str, Any]:
        """A small file's JSON object. Raises HubError if it is none."""

    def fetch(self, names: Sequence[str], progress: Progress | None) -> str:
        """The local path of the first of ``names``; the others lie beside it."""


class RemoteListing:
    """A repository on the Hub. Asks the Hub for the list of its files when it is made.

    Raises:
        HubError: the Hub refuses the repository.
        one of REQUEST_ERRORS: the Hub cannot be reached.
    """

    def __init__(self, repo: Repo):
        self._repo = repo
        # once a file has told it, so that all files are of one commit even if the branch moves on
        self._commit: str | None = None
        with _refusals_explained(repo):
            info = HfApi(endpoint=repo.endpoint).model_info(repo.name, revision=repo.revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
        # other names show as something else than they are, or are paths on Windows
        self._sizes = {name: size for name, size in sizes.items() if name.isprintable() and "\\" not in name}
        self.names = frozenset(self._sizes)

    def header(self, name: str) -> Mapping[str, torch.dtype | None] | None:
        api = HfApi(endpoint=self._repo.endpoint)
        try:
            with _refusals_explained(self._repo):
                header = api.parse_safetensors_file_metadata(
                    self._repo.name, name, revision=self._commit or self._repo.revision
                )
        except (SafetensorsParsingError, AttributeError, TypeError, RecursionError):
            # the last three where the library does not expect that JSON
            return None
        return {tensor: DTYPES.get(info.dtype) for tensor, info in header.tensors.items()}

    def json(self, name: str) -> dict[str, Any]:
        size = self._size(name)
        if size > LARGEST_JSON:
            raise HubError(
                self._repo.text,
                f"{name} has {size} bytes, which is too much for such a file.",
                "Get the model from a source that you trust.",
            )
        return _json(self._repo, name, self._file(name))

    def fetch(self, names: Sequence[str], progress: Progress | None) -> str:
        if progress is None:
            return [self._file(name) for name in names][0]
        sizes = {name: self._size(name) for name in names}
        tally = Tally(sum(sizes.values()))
        paths = []
        if "tqdm_class" not in inspect.signature(hf_hub_download).parameters:
            # nothing tells how far a file is, or could stop it
            for name in names:
                progress(tally.done, tally.total)
                paths.append(self._file(name))
                tally.finish_file(sizes[name])
            progress(tally.done, tally.total)
            return paths[0]

        def download():
            for name in names:
                paths.append(self._file(name, tqdm_class=tally.bar()))
                tally.finish_file(sizes[name])

        run_watched(download, tally, progress)
        return paths[0]

    def _size(self, name: str) -> int:
        """Bytes; some mirrors of the Hub do not list them."""
        size = self._sizes[name]
        if size is None:
            repo = self._repo
            url = hf_hub_url(repo.name, name, revision=self._commit or repo.revision, endpoint=repo.endpoint)
            with self._failures_explained(name):
                size = get_hf_file_metadata(url).size
        return size or 0

    def _file(self, name: str, **options) -> str:
        with self._failures_explained(name):
            path = hf_hub_download(
                self._repo.name,
                name,
                revision=self._commit or self._repo.revision,
                endpoint=self._repo.endpoint,
                cache_dir=self._repo.cache_dir,
                **options,
            )
        # …/snapshots/<commit>/<name>
        self._commit = Path(path).parents[name.count("/")].name
        return path

    @contextmanager
    def _failures_explained(self, name: str) -> Iterator[None]:
        try:
            with _refusals_explained(self._repo):
                yield
        except REQUEST_ERRORS as error:
            raise HubError(
                self._repo.text,
                f"{name} could not be downloaded ({outline(error)}).",
                "Check the network and the disk's free space, and try again.",
            ) from error


class CachedListing:
    """What the cache has of a repository: perhaps some files of it, perhaps nothing."""

    def __init__(self, repo: Repo):
        self._repo = repo
        try:
            self._folder = snapshot_download(
                repo.name,
                revision=repo.revision,
                cache_dir=repo.cache_dir,
                local_files_only=True,
                # only the folder is asked for: one with some of its files missing will do
                ignore_patterns="*",
            )
        except LocalEntryNotFoundError:
            self._folder = ""
            self.names = frozenset()
            return
        paths = (os.path.join(folder, name) for folder, _, names in os.walk(self._folder) for name in names)
        self.names = frozenset(
            # a link without its file is as good as none
            os.path.relpath(path, self._folder).replace(os.sep, "/")
            for path in paths
            if os.path.isfile(path)
        )

    def header(self, name: str) -> Mapping[str, torch.dtype | None] | None:
        try:
            tensors, _ = read_header(self._path(name))
        except CheckpointError:
            return None
        return {tensor: info.dtype for tensor, info in tensors.items()}

    def json(self, name: str) -> dict[str, Any]:
        return _json(self._repo, name, self._path(name))

    def fetch(self, names: Sequence[str], progress: Progress | None) -> str:
        return self._path(names[0])

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, *name.split("/"))


def outline(error: BaseException) -> str:
    """A few words for an error, not its text: that quotes the address, which may hold a password."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        # it says that the cache has no such file either; the cause is why the Hub was of no help
        error = error.__cause__
    status = _status(error)
    return f"HTTP {status}" if status else getattr(error, "strerror", None) or type(error).__name__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _json(repo: Repo, name: str, path: str) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError as error:
        raise HubError(repo.text, f"{name} {error.cause}", error.remedy) from error


@contextmanager
def _refusals_explained(repo: Repo) -> Iterator[None]:
    """Turn what the Hub answers about a repository's being and its access into HubErrors."""
    try:
        yield
    # a gated repository is also a missing one to huggingface_hub
    except GatedRepoError as error:
        raise HubError(
            repo.text,
            "is gated, and you have no access yet.",
            f"Accept its licence on https://huggingface.co/{repo.name}, then {_LOGIN}.",
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            repo.text, "does not exist, or is private.", f"Check the name; if the repository is private, {_LOGIN}."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(
            repo.text,
            f"has no revision {repo.revision or 'main'}.",
            "After the @ write a branch, a tag or a commit of the repository.",
        ) from error
    except HfHubHTTPError as error:
        if _status(error) not in (401, 403):
            raise
        raise HubError(
            repo.text, f"is refused to your token (HTTP {_status(error)}).", f"To renew the token, {_LOGIN}."
        ) from error
