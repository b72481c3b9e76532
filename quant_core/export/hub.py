"""Uploading a saved folder to the Hugging Face Hub.

The token is huggingface_hub's own (its login, or ``HF_TOKEN``). No argument takes one: what a widget holds ends up in
workflow files, and in the pictures that are shared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..folder import INDEX_SUFFIX
from ..hub import HubError
from ..hub.listing import REQUEST_ERRORS
from .card import folder_files, model_card

CARD = "README.md"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
_SUFFIX = ".safetensors"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a folder that :func:`save_diffusers_folder` wrote: ``config.json`` first, then the weights, then a card.

    Each is a commit of its own, so that a repository with weights always tells how they are packed. A card that the
    repository has already stays as it is. Uploading again continues where an upload was broken off. Weights that an
    earlier upload left there under the same name, in fewer or more files, are deleted with the commit of the new ones.

    Args:
        repo_id: ``owner/name``; it is made where it does not exist.
        private: whether a repository that is made is private; an existing one stays as it is.
        revision: a branch, made where it does not exist; by default the main one.
        commit_message: for the commit of the weights.
        endpoint: the Hub's address; by default huggingface_hub's.

    Returns:
        the address of the commit that has the weights.

    Raises:
        HubError: there is no token or no write access, or the Hub cannot be reached.
        CheckpointError: ``folder`` holds no model.
    """
    folder = os.fspath(folder)
    config, weights = folder_files(folder)
    card = model_card(folder, repo_id, revision)
    with _explained(repo_id):
        validate_repo_id(repo_id)
        if get_token() is None:
            raise HubError(repo_id, "nothing was uploaded: there is no token for the Hub.", f"To upload, {_LOGIN}.")
        api = HfApi(endpoint=endpoint)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)

        def commit(message: str, operations: Sequence[CommitOperationAdd | CommitOperationDelete]) -> str:
            return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url

        commit("Add the config", [CommitOperationAdd(config, os.path.join(folder, config))])
        there = [entry.path for entry in api.list_repo_tree(repo_id, revision=revision)]
        url = commit(
            commit_message or "Add the quantized weights",
            [
                *(CommitOperationAdd(name, os.path.join(folder, name)) for name in weights),
                *(CommitOperationDelete(name) for name in _replaced(there, weights)),
            ],
        )
        if not api.file_exists(repo_id, CARD, revision=revision):
            commit("Add a model card", [CommitOperationAdd(CARD, str(card).encode())])
    return url


def _replaced(there: Iterable[str], weights: Collection[str]) -> list[str]:
    """Which files of the repository the new ``weights`` take the place of: those of the same stem, and their index.

    Loaders prefer a single file to an index, and so would take the weights of before.
    """
    stems = {_stem(name) for name in weights}
    return [name for name in there if _stem(name) in stems and name not in weights]


def _stem(name: str) -> str | None:
    """``model`` of ``model.safetensors``, one of its shards or their index; None for a file that is none of these."""
    if name.endswith(INDEX_SUFFIX):
        return name.removesuffix(INDEX_SUFFIX)
    return _SHARD.sub("", name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into HubErrors."""
    try:
        yield
    except HFValidationError as error:
        raise HubError(repo_id, "is no name of a repository.", "Write it as owner/name.") from error
    except OfflineModeIsEnabled as error:
        raise HubError(repo_id, "nothing can be uploaded: offline mode is on.", "Unset HF_HUB_OFFLINE.") from error
    except RevisionNotFoundError as error:
        raise HubError(repo_id, "has no such revision.", "Name a branch, not a commit.") from error
    except RepositoryNotFoundError as error:
        # what the Hub answers where a token may not even see the repository
        raise HubError(repo_id, "does not exist for your token.", f"Check the name, and {_LOGIN}.") from error
    except HubError:
        raise
    except Exception as error:
        found = _request_error(error)
        if found is None and isinstance(error, (RuntimeError, ValueError)):
            # how the Xet protocol fails, and what huggingface_hub makes of an answer that is none
            found = error
        if found is None:
            raise
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status in (401, 403):
            raise HubError(
                repo_id,
                f"your token may not write there (HTTP {status}).",
                f"Name a repository of your own, or {_LOGIN} there.",
            ) from error
        # not the error's text: it may quote an address with a password
        reason = f"HTTP {status}" if status else getattr(found, "strerror", None) or type(found).__name__
        raise HubError(
            repo_id,
            f"the upload broke off ({reason}).",
            "Check the network and HF_ENDPOINT, and upload again: it continues where it was.",
        ) from error


def _request_error(error: BaseException | None) -> BaseException | None:
    """The failed request that ``error`` is, or was raised for: uploads of several files wrap it."""
    while error is not None:
        if isinstance(error, REQUEST_ERRORS):
            return error
        error = error.__cause__
    return None
