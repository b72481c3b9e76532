"""Which of a repository's files and folders to take for a model."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from ..folder import CONFIG, WEIGHTS, is_plain_file_name
from ..header import PICKLE_REMEDY
from ..identify import Kind
from .files import SIXTEEN_BIT_ORDER, SingleFile, single_file
from .folders import PICKLES, ModelFolder, UnusableFolder, listed, model_folder, needed_files, shown
from .listing import Listing
from .repo import HubError, Repo


class NothingFound(Exception):
    """A listing has no model of the wanted kind; the text says what there is instead, without a full stop."""

    def __init__(self, cause: str, remedy: str):
        self.remedy = remedy
        super().__init__(cause)


@dataclass(frozen=True)
class Choice:
    """Files that make up a model, by their paths in the repository. A folder's config.json comes first."""

    files: tuple[str, ...]
    is_folder: bool = False

    def __str__(self) -> str:
        return shown(posixpath.dirname(self.files[0])) if self.is_folder else self.files[0]


def choose(listing: Listing, repo: Repo, wanted: Kind) -> Choice:
    """The file that ``repo.path`` names, else the best file or folder at the root or in the folder that it names.

    A 16-bit file goes before a 16-bit folder before a folder packed by bitsandbytes before an fp8 or packed file.

    Raises:
        NothingFound: none of them holds the model.
        HubError: several would do equally well, or a config.json or an index is unusable.
    """
    search = _Search(listing, repo, wanted)
    return search.named_file() if repo.path.endswith(".safetensors") else search.best()


class _Search:
    def __init__(self, listing: Listing, repo: Repo, wanted: Kind):
        self._listing = listing
        self._repo = repo
        self._wanted = wanted
        self._model = wanted.description.split(" ", 1)[1]
        # why nothing was taken yet
        self._reasons: list[str] = []

    def named_file(self) -> Choice:
        path = self._repo.path
        if path not in self._listing.names:
            raise self._nothing(f"has no file {path}")
        file = single_file(self._listing, path, self._wanted)
        if not file.can_be_loaded:
            raise self._nothing(f"has no {self._model} that can be loaded in {file}")
        return Choice((path,))

    def best(self) -> Choice:
        base = self._repo.path
        if base and not any(name.startswith(f"{base}/") for name in self._listing.names):
            raise self._nothing(f"has no .safetensors file and no folder {base}")
        own = self._folder(base)
        files = self._single_files(base, own)
        sixteen_bit = [file for file in files if file.is_16_bit]
        if sixteen_bit:
            return Choice((min(sixteen_bit, key=_by_dtype).path,))
        component = self._folder(posixpath.join(base, self._wanted.component)) if self._wanted.component else None
        folders = [folder for folder in (component, own) if folder]
        for folder in sorted(folders, key=lambda folder: folder.packed):
            try:
                return Choice(needed_files(self._listing, self._repo, folder), is_folder=True)
            except UnusableFolder as unusable:
                self._reasons.append(str(unusable))
        others = [file for file in files if file.can_be_loaded]
        others = [file for file in others if not file.shared] or others
        if len(others) > 1:
            raise HubError(
                self._repo.text,
                f"holds {self._wanted.description} in several files, none of them at 16 bit: {listed(others)}.",
                f"Name the one to take, as in {self._repo.naming(others[0].path)}",
            )
        if others:
            return Choice((others[0].path,))
        raise self._nothing(f"has no {self._model} that can be loaded: {'; '.join(self._reasons)}")

    def _folder(self, path: str) -> ModelFolder | None:
        try:
            return model_folder(self._listing, path, self._wanted)
        except UnusableFolder as unusable:
            self._reasons.append(str(unusable))
            return None

    def _single_files(self, base: str, folder: ModelFolder | None) -> list[SingleFile]:
        paths = [path for path in sorted(self._listing.names) if posixpath.dirname(path) == base]
        names = [posixpath.basename(path) for path in paths if is_plain_file_name(posixpath.basename(path))]
        if folder is not None:
            # its weights belong with its config.json
            names = [name for name in names if name not in WEIGHTS]
        files = [single_file(self._listing, posixpath.join(base, name), self._wanted) for name in names]
        where = f"in {shown(base)}" if base else "at its root"
        self._reasons.append(f"{where} there is only {listed(files)}" if files else f"no .safetensors file {where}")
        pickles = [path for path in paths if path.endswith(PICKLES)]
        if pickles:
            self._reasons.append(f"pickles are not read ({listed(pickles)})")
        return files

    def _nothing(self, cause: str) -> NothingFound:
        component = posixpath.join(self._repo.path, self._wanted.component)
        looked_through = (self._repo.path, component)
        if any(name.endswith(PICKLES) and posixpath.dirname(name) in looked_through for name in self._listing.names):
            return NothingFound(cause, PICKLE_REMEDY)
        return NothingFound(
            cause,
            f"Name a repository with {self._wanted.description} in a .safetensors file or in diffusers' layout "
            f"({self._wanted.component}/{CONFIG}), or one of its files or folders: owner/name/path/inside.",
        )


def _by_dtype(file: SingleFile) -> tuple[int, bool, str]:
    return SIXTEEN_BIT_ORDER.index(file.stored), file.shared, file.path
