"""What a model's own quantization is, and whether the recipe that is asked for agrees with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from .assembly import Assembly
from .checkpoint import Checkpoint
from .config import QuantConfig, named_compute_dtype
from .errors import CheckpointError, ConfigError
from .skip import is_skipped
from .stored.four_bit import FourBit

METADATA_KEY = "quantflux"


def stored_config(checkpoint: Checkpoint, tensors: Mapping[str, Assembly]) -> QuantConfig | None:
    """The quantization that a checkpoint comes with; None if nothing in it is packed.

    Precision, blocksize and nesting are those of the packed weights themselves; int8's threshold and, where this
    project wrote the file, the compute dtype come from the description beside them. diffusers' and transformers'
    compute dtype is not taken: float32 is its default there, not a choice.

    Raises:
        CheckpointError: the description is of another quantization method, or cannot be read.
    """
    described = _described(checkpoint)
    packed = next((part for tensor in tensors.values() for part in tensor.parts if part.packing), None)
    if packed is None:
        return None
    if isinstance(packed, FourBit):
        config = QuantConfig(packed.quant_type, blocksize=packed.blocksize, double_quant=packed.nested)
    else:
        threshold = described.int8_threshold if described and described.precision == "int8" else 6.0
        config = QuantConfig("int8", int8_threshold=threshold)
    if described and checkpoint.config is None:
        config = dataclasses.replace(config, compute_dtype=described.compute_dtype)
    return config


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
        asked: None takes the model's own, or NF4 for a 16-bit model.

    Raises:
        CheckpointError: what is asked for would change the packed weights.
    """
    own = stored_config(checkpoint, tensors)
    if own is None:
        return asked or QuantConfig(), True
    if asked is None:
        return own, False
    for module, names in modules.items():
        tensor = tensors[f"{module}.weight"]
        skipped = is_skipped(names, asked.skip_modules)
        if skipped and tensor.packing:
            _disagree(checkpoint, f"holds {module} packed", "leaves it at 16 bit", "remove it from skip_modules")
        if skipped:
            continue  # it is at 16 bit, or is kept so because one of its parts is
        for part in tensor.parts:
            if part.packing and not _same_packing(part, asked):
                found = part.packing + (" double quant" if isinstance(part, FourBit) and part.nested else "")
                _disagree(checkpoint, f"is already packed as {found}", f"asks for {asked.describe()}", "set it to that")
    return asked, False


def _same_packing(part, asked: QuantConfig) -> bool:
    if isinstance(part, FourBit):
        return (part.quant_type, part.blocksize, part.nested) == (asked.precision, asked.blocksize, asked.double_quant)
    return asked.precision == "int8"


def _disagree(checkpoint: Checkpoint, is_so: str, is_asked: str, or_else: str):
    raise CheckpointError(
        checkpoint.path,
        f"{is_so}, but the config {is_asked}.",
        f"Disconnect the config to load the model as it is, or {or_else}. "
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
            config = dataclasses.replace(config, compute_dtype=dtype)
        return config
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            checkpoint.path,
            f"has a quantization config that cannot be used. {error}",
            "Use the model's 16-bit files." if isinstance(error, ConfigError) else "Download the model again.",
        ) from error
