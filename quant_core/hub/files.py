"""What a repository's single .safetensors files hold, told from their headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..identify import FLUX, FLUX_DIFFUSERS, Kind, identify, lookalike
from ..stored.contents import is_statistic
from ..stored.four_bit import STATE
from ..stored.int8 import SCALES
from ..stored.plain import FLOAT8
from .listing import Listing

# of several 16-bit files that hold the same model, the first of these dtypes is taken
SIXTEEN_BIT_ORDER = (torch.bfloat16, torch.float16, torch.float32)
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_PACKED = "packed by bitsandbytes"


@dataclass(frozen=True)
class SingleFile:
    """A .safetensors file.

    Attributes:
        path: in the repository.
        what: the sort of model in it, or why there is none.
        stored: how it stores the wanted model: a dtype, or that it is packed; None if it does not hold the model.
        shared: whether the wanted model stands beside others, as in an all-in-one checkpoint.
    """

    path: str
    what: str
    stored: torch.dtype | str | None = None
    shared: bool = False

    def __str__(self) -> str:
        how = f", {str(self.stored).removeprefix('torch.')}" if self.stored else ""
        return f"{self.path} ({self.what}{how})"

    @property
    def is_16_bit(self) -> bool:
        return self.stored in SIXTEEN_BIT_ORDER

    @property
    def can_be_loaded(self) -> bool:
        return self.is_16_bit or self.stored in (*FLOAT8, _PACKED)


def single_file(listing: Listing, path: str, wanted: Kind) -> SingleFile:
    """Look at the header of one of the ``listing``'s .safetensors files."""
    if _SHARD.search(path):
        return SingleFile(path, "one part of several")
    header = listing.header(path)
    if header is None:
        return SingleFile(path, "no usable safetensors header")
    found = identify(header)
    what = found.description if found else "unknown"
    for kind in (FLUX, FLUX_DIFFUSERS) if wanted is FLUX else (wanted,):
        if found is kind:
            # scales and other statistics have names that go on after the weight's
            marker = next((name for name in header if name.endswith(kind.marker)), None)
        else:
            # beside other models it stands under a prefix that only it has
            own = (p for p in kind.prefixes if p and p + kind.marker in header)
            marker = next((p + kind.marker for p in own if not lookalike(header, kind, p)), None)
        if marker is not None:
            prefix = marker.partition(kind.marker)[0]
            tensors = {name: dtype for name, dtype in header.items() if name.startswith(prefix)}
            return SingleFile(path, what, _stored(tensors, header[marker]), shared=found is not kind)
    return SingleFile(path, what)


def _stored(tensors: Mapping[str, torch.dtype | None], weight: torch.dtype | None) -> torch.dtype | str:
    """How a model's ``tensors`` are stored, of which one telling weight has the dtype ``weight``."""
    if any(STATE in name or name.endswith(SCALES) for name in tensors):
        return _PACKED
    if weight in SIXTEEN_BIT_ORDER:
        # the telling weight may be one of the few that a file in fp8 keeps
        dtypes = (dtype for name, dtype in tensors.items() if not is_statistic(name))
        weight = next((dtype for dtype in dtypes if dtype in FLOAT8), weight)
    return weight or "a dtype that is not known"
