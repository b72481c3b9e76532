"""A model from a Hugging Face repository, chosen by what it holds and kept in the Hub's own cache."""

from __future__ import annotations

import logging
import os

from huggingface_hub.errors import OfflineModeIsEnabled

from ..identify import Kind
from .choice import Choice, NothingFound, choose
from .listing import REQUEST_ERRORS, CachedListing, Listing, RemoteListing, outline
from .progress import Progress, run_asking
from .repo import HubError, Repo, parse_repo

logger = logging.getLogger(__name__)


def hub_path(
    hub_repo: str,
    wanted: Kind,
    progress: Progress | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: str | None = None,
) -> str:
    """The local path of a repository's model of the ``wanted`` kind, downloaded if need be: a file, or a folder.

    Looked for are .safetensors files at the root, told apart by their headers, and folders in the layout of diffusers
    and transformers, told apart by their config.json: the kind's subfolder of a pipeline, or the root. Taken is a
    16-bit file, else a 16-bit folder, else a folder packed by bitsandbytes, else an fp8 or packed file. Of several
    16-bit files, bfloat16 goes before float16 before float32, then the first name in alphabetical order. Of a folder,
    only config.json, the index and the .safetensors files that it names are downloaded.

    Token, offline mode, cache and endpoint are huggingface_hub's own (HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE,
    HF_ENDPOINT). Without the Hub, the same rule picks from what is complete in the cache.

    Args:
        hub_repo: "owner/name", "owner/name@revision" or "owner/name/path/inside@revision". A revision is a branch, a
            tag or a commit. A path is a .safetensors file, which is taken, or a folder, which is looked through instead
            of the root.
        wanted: FLUX or T5; of other kinds only single files are found.
        progress: called on the calling thread: with (0, 1) while the repository is looked at, then with (bytes done,
            bytes in all) over all files. What it raises ends that within two seconds. Versions of huggingface_hub whose
            ``hf_hub_download`` takes no ``tqdm_class`` call it only between files.
        endpoint: another Hub than huggingface_hub's.
        cache_dir: another cache folder than huggingface_hub's.

    Raises:
        ConfigError: ``hub_repo`` has another form.
        HubError: the repository cannot be had, or has no such model, or several that are equally good.
    """
    repo = parse_repo(hub_repo, endpoint, cache_dir)

    def look():
        return _found(repo, wanted)

    listing, choice = look() if progress is None else run_asking(look, progress)
    path = listing.fetch(choice.files, progress)
    return os.path.dirname(path) if choice.is_folder else path


def _found(repo: Repo, wanted: Kind) -> tuple[Listing, Choice]:
    try:
        listing = RemoteListing(repo)
        choice = choose(listing, repo, wanted)
    except NothingFound as nothing:
        raise HubError(repo.text, f"{nothing}.", nothing.remedy) from None
    except REQUEST_ERRORS as error:
        return _found_in_cache(repo, wanted, error)
    logger.info("%s: taking %s.", repo.text, choice)
    return listing, choice


def _found_in_cache(repo: Repo, wanted: Kind, error: Exception) -> tuple[Listing, Choice]:
    offline = isinstance(error, OfflineModeIsEnabled)
    reason = "offline mode is on" if offline else f"the Hub cannot be reached ({outline(error)})"
    listing = CachedListing(repo)
    try:
        choice = choose(listing, repo, wanted)
    except NothingFound as nothing:
        raise HubError(
            repo.text,
            f"{nothing}. Only the Hugging Face cache was searched, because {reason}.",
            "Unset HF_HUB_OFFLINE to download it." if offline else "Check the network and HF_ENDPOINT, and try again.",
        ) from error
    if not offline:
        logger.warning("%s: %s; taking %s from the cache.", repo.text, reason, choice)
    return listing, choice
