"""What a model's own quantization is, and whether the recipe that is asked for agrees with it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from .assembly import Assembly
from .checkpoint import Checkpoint
from .config import QuantConfig, named_compute_dtype
from .errors import CheckpointError, ConfigError
from .skip import is_skipped
from .stored import StoredTensor
from .stored.four_bit import FourBit

METADATA_KEY = "quantflux"


def stored_config(checkpoint: Checkpoint, tensors: Mapping[str, Assembly]) -> QuantConfig | None:
    """The quantization that a checkpoint comes with; None if nothing in it is packed.

    Precision, blocksize and nesting are those of the packed weights themselves, of most of them where they differ;
    int8's threshold and, where this project wrote the file, the compute dtype come from the description beside them.
    diffusers' and transformers' compute dtype is not taken: float32 is its default there, not a choice.

    Raises:
        CheckpointError: the description is of another quantization method, or cannot be read.
    """
    described = _described(checkpoint)
    packed = [part for tensor in tensors.values() for part in tensor.parts if part.packing]
    if not packed:
        return None
    config = most_common((recipe_of(part), math.prod(part.shape)) for part in packed)
    if described:
        config = dataclasses.replace(config, int8_threshold=described.int8_threshold)
    if described and checkpoint.config is None:
        config = dataclasses.replace(config, compute_dtype=described.compute_dtype)
    return config


def recipe_of(part: StoredTensor) -> QuantConfig:
    """How a packed tensor of a file was packed."""
    if isinstance(part, FourBit):
        return QuantConfig(part.quant_type, blocksize=part.blocksize, double_quant=part.nested)
    return QuantConfig("int8")


def most_common(recipes: Iterable[tuple[QuantConfig, int]]) -> QuantConfig:
    """Of (recipe, number of weights), at least one, the recipe that most weights have; the first of equals."""
    counts: Counter[QuantConfig] = Counter()
    for recipe, number in recipes:
        counts[recipe] += number
    return max(counts, key=lambda recipe: counts[recipe])


def agreed(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Assembly],
    modules: Mapping[str, tuple[str, ...]],
    asked: QuantConfig | None,
) -> tuple[QuantConfig, bool]:
    """(the recipe to use, whether 16-bit weights are still to be quantized by it).

    A model that is packed keeps its own quantization. What concerns only the arithmetic, compute dtype and int8's
    threshold, may be asked for anew.

    Args:
        modules: linear module of the model -> all names that a skip list may call it by.
        asked: None takes the model's own, or NF4 for a 16-bit model that this project did not save.

    Raises:
        CheckpointError: what is asked for would change the packed weights.
    """
    own = stored_config(checkpoint, tensors)
    if own is None:
        # one that was saved at 16 bit was meant to be so
        return asked or QuantConfig("none" if METADATA_KEY in checkpoint.metadata else "nf4"), True
    if asked is None:
        return own, False
    if asked.budget_gib is not None:
        _disagree(
            checkpoint,
            f"is already packed as {_label(own)}",
            f"asks for a choice of precisions within {asked.budget_gib:g} GiB",
            "remove auto from skip_modules",
        )
    for module, names in modules.items():
        tensor = tensors[f"{module}.weight"]
        skipped = is_skipped(names, asked.skip_modules)
        if skipped and tensor.packing:
            _disagree(checkpoint, f"holds {module} packed", "leaves it at 16 bit", "remove it from skip_modules")
        if skipped:
            continue  # it is at 16 bit, or is kept so because one of its parts is
        for part in tensor.parts:
            if part.packing and not _same_packing(part, asked):
                found = recipe_of(part)
                mixed = len({recipe_of(p) for t in tensors.values() for p in t.parts if p.packing}) > 1
                is_so = f"has {module} packed as" if mixed else "is already packed as"
                way_out = "" if mixed else "set it to that"
                _disagree(checkpoint, f"{is_so} {_label(found)}", f"asks for {asked.describe()}", way_out)
    return asked, False


def _same_packing(part: StoredTensor, asked: QuantConfig) -> bool:
    found = recipe_of(part)
    if found.precision == asked.precision == "int8":
        return True
    return (found.precision, found.blocksize, found.double_quant) == (
        asked.precision, asked.blocksize, asked.double_quant
    )  # fmt: skip


def _label(found: QuantConfig) -> str:
    """Of what is in a file: with its blocksize always, and without a threshold, which it has not."""
    if found.precision == "int8":
        return "int8"
    return f"{found.precision} blocksize {found.blocksize}{' double quant' if found.double_quant else ''}"


def _disagree(checkpoint: Checkpoint, is_so: str, is_asked: str, or_else: str):
    raise CheckpointError(
        checkpoint.path,
        f"{is_so}, but the config {is_asked}.",
        f"Disconnect the config to load the model as it is{', or ' if or_else else ''}{or_else}. "
        "To quantize it otherwise, load the 16-bit model.",
    )


def _described(checkpoint: Checkpoint) -> QuantConfig | None:
    """The quantization config in ``config.json`` or in a single file's metadata."""
    try:
        if checkpoint.config is not None:
            wire = checkpoint.config.get("quantization_config")
        else:
            written = json.loads(checkpoint.metadata.get(METADATA_KEY, "{}"))
            wire = written.get("quantization_config") if isinstance(written, dict) else None
        if not isinstance(wire, dict):
            return None
        config = QuantConfig.from_hugging_face(wire)
        if checkpoint.config is None:
            # this project's own files may leave the choice to the device, which BitsAndBytesConfig cannot say
            dtype = named_compute_dtype(wire.get("bnb_4bit_compute_dtype") or "auto")
            # some layers may be int8 where most are not, and BitsAndBytesConfig is of one precision
            threshold = float(written.get("int8_threshold", config.int8_threshold))
            config = dataclasses.replace(config, compute_dtype=dtype, int8_threshold=threshold)
        return config
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            checkpoint.path,
            f"has a quantization config that cannot be used. {error}",
            "Use the model's 16-bit files." if isinstance(error, ConfigError) else "Download the model again.",
        ) from error
