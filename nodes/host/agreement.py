"""Whether a model that is packed already is what a config asks for."""

from __future__ import annotations

import comfy.model_patcher
import torch

from ...quant_core.config import QuantConfig, compute_dtype_name
from ...quant_core.errors import ConfigError
from ...quant_core.layouts import Int8Layout
from ...quant_core.skip import is_skipped
from .operations import packed_linears


def require_agreement(
    patcher: comfy.model_patcher.ModelPatcher, asked: QuantConfig, names: dict[str, tuple[str, ...]], input_name: str
) -> None:
    """
    Args:
        names: packed layer -> all names that a skip list may call it by.

    Raises:
        ConfigError: a layer is packed otherwise, or computes in another dtype.
    """
    for path, layer in packed_linears(patcher.model).items():
        found = _recipe(layer.weight).describe()
        if found != asked.describe():
            _disagree(input_name, f"with {names[path][0]} as {found}", f"asks for {asked.describe()}")
        if is_skipped(names[path], asked.skip_modules):
            _disagree(input_name, f"with {names[path][0]}", "skips that module")
        if asked.compute_dtype not in (None, layer.compute_dtype):
            own = compute_dtype_name(layer.compute_dtype) or "auto"
            wanted = compute_dtype_name(asked.compute_dtype)
            _disagree(input_name, f"with compute_dtype {own}", f"asks for {wanted}")


def _recipe(weight: torch.Tensor) -> QuantConfig:
    params = weight._params
    if weight._layout_cls == Int8Layout.NAME:
        return QuantConfig("int8", int8_threshold=params.threshold)
    return QuantConfig(params.quant_type, double_quant=params.nested, blocksize=params.blocksize)


def _disagree(input_name: str, is_so: str, is_asked: str) -> None:
    raise ConfigError(
        f"{input_name} is packed already {is_so}, but the config {is_asked}. Disconnect the config to use it as it is, "
        "give that config to its loader, or put a Dequantize node before this one; what quantizing rounded away does "
        "not come back."
    )
