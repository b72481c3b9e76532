"""A model file from a Hugging Face repository, chosen by what it holds and kept in the Hub's own cache."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import validate_repo_id

from .checkpoint import DTYPES, open_checkpoint
from .errors import CheckpointError, ConfigError
from .hub_progress import Progress, reporting_bar
from .identify import Kind, identify

logger = logging.getLogger(__name__)

# what can be quantized; of several files that hold the same model, the first of these dtypes is taken
_DTYPE_ORDER = (torch.bfloat16, torch.float16, torch.float32)
# no part of a revision may start with a dot: the cache keeps it as a path
_REVISION = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", re.ASCII)
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
# Whatever a request may fail with. Depending on its version, huggingface_hub speaks through requests, httpx or httpx2;
# HfHubHTTPError inherits from its client's base class, and the failures of requests are OSErrors.
_REQUEST_ERRORS = (*HfHubHTTPError.__bases__, OSError)
_ONE_FILE_REMEDY = "Name a repository with the model in one .safetensors file at its root, or download such a file."
_NO_DIFFUSERS = "Folders in diffusers' layout are not read from the Hub yet."
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class HubError(ValueError):
    """A repository that no file can be had from.

    Args:
        hub_repo: the repository as the user named it; it opens the message.
        cause: what is wrong.
        remedy: what the user can do.
    """

    def __init__(self, hub_repo: str, cause: str, remedy: str):
        self.hub_repo = hub_repo
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{hub_repo}: {cause} {remedy}")


@dataclass(frozen=True)
class _Repo:
    """A repository as the user named it (``text``), and where it is looked for."""

    text: str
    name: str
    revision: str | None
    endpoint: str | None
    cache_dir: str | None


@dataclass(frozen=True)
class _File:
    """A .safetensors file at a repository's root. ``dtype`` is that of the tensor which tells its kind."""

    name: str
    kind: Kind | None
    dtype: torch.dtype | None

    def __str__(self) -> str:
        if _SHARD.search(self.name):
            return f"{self.name} (one part of several)"
        return f"{self.name} ({self.kind.description if self.kind else 'unknown'})"


def hub_file(
    hub_repo: str,
    wanted: Kind,
    progress: Progress | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: str | None = None,
) -> str:
    """The local path of the one file of the ``wanted`` kind at a repository's root, downloaded if need be.

    Files are told apart by their headers, not by their names. If several are of the kind, bfloat16 goes before float16
    before float32, then the first name in alphabetical order. Token, offline mode, cache and endpoint are
    huggingface_hub's own (HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_ENDPOINT). Without the Hub, the same rule picks
    from what is in the cache.

    Args:
        hub_repo: "owner/name" or "owner/name@revision"; a revision is a branch, a tag or a commit.
        wanted: the kind of file.
        progress: called while downloading with (bytes done, bytes in all); what it raises ends the download. Versions
            of huggingface_hub whose ``hf_hub_download`` takes no ``tqdm_class`` never call it.
        endpoint: another Hub than huggingface_hub's.
        cache_dir: another cache folder than huggingface_hub's.

    Raises:
        ConfigError: ``hub_repo`` has another form.
        HubError: the repository cannot be had, or has no such file.
    """
    name, revision = _parsed(hub_repo)
    repo = _Repo(hub_repo, name, revision, endpoint, cache_dir)
    try:
        with _refusals_explained(repo):
            names = HfApi(endpoint=endpoint).model_info(name, revision=revision).siblings or ()
            names = [sibling.rfilename for sibling in names]
            files = [_remote_file(repo, file) for file in names if _is_root_safetensors(file)]
    except _REQUEST_ERRORS as error:
        return _cached_file(repo, wanted, error)
    chosen = _choose(files, wanted)
    if chosen is None:
        raise _nothing_wanted(repo, wanted, files, names)
    logger.info("%s: taking %s.", hub_repo, chosen.name)
    return _download(repo, chosen.name, progress)


def _parsed(hub_repo: str) -> tuple[str, str | None]:
    """(owner/name, revision)"""
    name, at, revision = hub_repo.partition("@")
    try:
        validate_repo_id(name)
        # some versions let a name end in a line break
        valid = (
            name.count("/") == 1
            and name == name.strip()
            and (not at or _REVISION.fullmatch(revision) and ".." not in revision)
        )
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(
            f"hub_repo {hub_repo!r} is no repository's name: write owner/name or owner/name@revision, "
            "as in black-forest-labs/FLUX.1-schnell."
        )
    return name, revision or None


def _is_root_safetensors(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors")


def _remote_file(repo: _Repo, name: str) -> _File:
    if _SHARD.search(name):
        return _File(name, None, None)
    api = HfApi(endpoint=repo.endpoint)
    try:
        header = api.parse_safetensors_file_metadata(repo.name, name, revision=repo.revision)
    except SafetensorsParsingError:
        return _File(name, None, None)
    return _file(name, {tensor: DTYPES.get(info.dtype) for tensor, info in header.tensors.items()})


def _local_file(folder: str, name: str) -> _File:
    if _SHARD.search(name):
        return _File(name, None, None)
    try:
        checkpoint = open_checkpoint(os.path.join(folder, name))
    except CheckpointError:
        return _File(name, None, None)
    return _file(name, {tensor: info.dtype for tensor, info in checkpoint.tensors.items()})


def _file(name: str, dtypes: Mapping[str, torch.dtype | None]) -> _File:
    kind = identify(dtypes)
    dtype = None if kind is None else next(found for tensor, found in dtypes.items() if kind.marker in tensor)
    return _File(name, kind, dtype)


def _choose(files: Iterable[_File], wanted: Kind) -> _File | None:
    usable = [file for file in files if file.kind is wanted and file.dtype in _DTYPE_ORDER]
    return min(usable, key=lambda file: (_DTYPE_ORDER.index(file.dtype), file.name), default=None)


def _nothing_wanted(repo: _Repo, wanted: Kind, files: list[_File], names: list[str]) -> HubError:
    packed = next((file for file in files if file.kind is wanted), None)
    if packed is not None:
        # the loaders would refuse it, but only after a download of gigabytes
        dtype = "in an unknown dtype" if packed.dtype is None else f"as {str(packed.dtype).removeprefix('torch.')}"
        return HubError(
            repo.text,
            f"stores {wanted.description} only {dtype} ({packed.name}), which cannot be quantized.",
            "Name a repository with a bfloat16, float16 or float32 file.",
        )
    found = f"only {', '.join(map(str, files))}" if files else "no .safetensors file"
    diffusers = any(name == "model_index.json" or name.startswith("transformer/") for name in names)
    return HubError(
        repo.text,
        f"holds no single file with {wanted.description}: there is {found} at its root."
        + (f" {_NO_DIFFUSERS}" if diffusers else ""),
        _ONE_FILE_REMEDY,
    )


def _cached_file(repo: _Repo, wanted: Kind, error: Exception) -> str:
    offline = isinstance(error, OfflineModeIsEnabled)
    reason = "offline mode is on" if offline else f"the Hub cannot be reached ({_outline(error)})"
    try:
        folder = snapshot_download(
            repo.name,
            revision=repo.revision,
            cache_dir=repo.cache_dir,
            local_files_only=True,
            # only the folder is asked for: one with some of its files missing will do
            ignore_patterns="*",
        )
        files = [_local_file(folder, name) for name in sorted(os.listdir(folder)) if _is_root_safetensors(name)]
    except LocalEntryNotFoundError:
        files = []
    chosen = _choose(files, wanted)
    if chosen is None:
        raise HubError(
            repo.text,
            f"has no file with {wanted.description} in the Hugging Face cache, and {reason}.",
            "Unset HF_HUB_OFFLINE to download it." if offline else "Check the network and HF_ENDPOINT, and try again.",
        ) from error
    if not offline:
        logger.warning("%s: %s; taking %s from the cache.", repo.text, reason, chosen.name)
    return os.path.join(folder, chosen.name)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _outline(error: BaseException) -> str:
    """A few words for an error, not its text: that quotes the address, which may hold a password."""
    status = _status(error)
    return f"HTTP {status}" if status else getattr(error, "strerror", None) or type(error).__name__


@contextmanager
def _refusals_explained(repo: _Repo) -> Iterator[None]:
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


def _download(repo: _Repo, name: str, progress: Progress | None) -> str:
    stopped_by: list[BaseException] = []
    options = {}
    if progress is not None and "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        options["tqdm_class"] = reporting_bar(progress, stopped_by)
    try:
        with _refusals_explained(repo):
            path = hf_hub_download(
                repo.name, name, revision=repo.revision, endpoint=repo.endpoint, cache_dir=repo.cache_dir, **options
            )
    except BaseException as error:
        if stopped_by:
            raise stopped_by[0] from None
        if isinstance(error, _REQUEST_ERRORS):
            raise HubError(
                repo.text,
                f"{name} could not be downloaded ({_outline(error)}).",
                "Check the network and the disk's free space, and try again.",
            ) from error
        raise
    if stopped_by:
        raise stopped_by[0]
    return path
