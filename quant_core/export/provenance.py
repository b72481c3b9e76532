"""Where a model came from: what is remembered of its files, and written beside its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..config import QuantConfig, compute_dtype_name
from ..flux.config import FluxConfig
from ..header import raw_header
from ..recipe import METADATA_KEY
from ..source import Source
from ..t5 import T5Config

_IN_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]{40}(?=/|$)", re.ASCII)


@dataclass(frozen=True)
class Provenance:
    """What has to be known of a loaded model to save it.

    Attributes:
        source: name of the file or folder that it was read from.
        source_header_sha256: of the header of its safetensors file, or of those of its files one after the other.
        config: how it is quantized.
        model: its sizes.
        dtypes: tensor -> dtype in the file, of those that were not packed.
        base_model: the repository on the Hub that it came from, if it did.
    """

    source: str
    source_header_sha256: str
    config: QuantConfig
    model: FluxConfig | T5Config
    dtypes: Mapping[str, torch.dtype]
    base_model: str | None = None

    def metadata(self, plain_modules: list[str]) -> dict[str, str]:
        """The text fields of a safetensors header; ``METADATA_KEY`` holds JSON.

        Args:
            plain_modules: linear modules that are at 16 bit, by the file's names.
        """
        quantflux: dict[str, Any] = {
            "source": self.source,
            "source_header_sha256": self.source_header_sha256,
            "base_model": self.base_model,
            "versions": versions(),
        }
        if self.config.precision != "none":
            wire = wire_config(self.config, plain_modules)
            # what BitsAndBytesConfig cannot say: that the device chooses, and float8
            wire["bnb_4bit_compute_dtype"] = compute_dtype_name(self.config.compute_dtype)
            quantflux["quantization_config"] = wire
            quantflux["blocksize"] = self.config.blocksize if self.config.is_four_bit else None
            # of layers that are int8 where most are not
            quantflux["int8_threshold"] = self.config.int8_threshold
        return {"format": "pt", METADATA_KEY: json.dumps(quantflux)}


def provenance_of(source: Source) -> Provenance:
    """What to remember of ``source``.

    Raises:
        CheckpointError: its file is gone.
    """
    checkpoint = source.checkpoint
    plain = {name: tensor.dtype for name, tensor in source.tensors.items() if not tensor.packing}
    found = _IN_HUB_CACHE.search(checkpoint.path.replace("\\", "/"))
    return Provenance(
        source=checkpoint.name,
        source_header_sha256=header_sha256(checkpoint),
        config=source.config,
        model=source.model,
        dtypes={name: dtype for name, dtype in plain.items() if name not in source.packed},
        base_model="/".join(found.groups()) if found else None,
    )


def header_sha256(checkpoint: Checkpoint) -> str:
    """Hexadecimal SHA-256 of a safetensors header, its eight bytes of length included; of several files, those of all
    in the order of their names.

    It tells files with other tensors, shapes or metadata apart without reading gigabytes; not other values.

    Raises:
        CheckpointError: a file is gone, or another one without such a header.
    """
    digest = hashlib.sha256()
    for path in sorted({info.file for info in checkpoint.tensors.values()}):
        header, _ = raw_header(path)
        digest.update(len(header).to_bytes(8, "little") + header)
    return digest.hexdigest()


def wire_config(config: QuantConfig, skip_modules: list[str], transformers: bool = False) -> dict[str, Any]:
    """``config`` as the ``quantization_config`` of diffusers, or transformers: ready for JSON.

    They have no field for a blocksize and need none: bitsandbytes reads it beside each weight.
    """
    wired = replace(config, blocksize=64, skip_modules=tuple(skip_modules))
    fields = (wired.to_transformers() if transformers else wired.to_diffusers()).to_dict()
    # an enumeration of texts
    return json.loads(json.dumps(fields))


def versions() -> dict[str, str | None]:
    """Versions of this project and of what packs the weights."""
    found: dict[str, str | None] = {"quantflux": _own_version()}
    for package in ("torch", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            # not installed by a package manager
            found[package] = None
    return found


def _own_version() -> str | None:
    # ComfyUI runs the pack from its folder, where it is not installed as a package
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        found = re.search(r'^version = "([^"]+)"', project.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    try:
        return version("quantflux")
    except PackageNotFoundError:
        return None
