"""NF4 and FP4 weights as bitsandbytes stores them.

Beside ``X`` there are ``X.absmax``, ``X.quant_map`` and ``X.quant_state.bitsandbytes__nf4`` or ``__fp4``; nested ones
have ``X.nested_absmax`` and ``X.nested_quant_map`` too.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import bitsandbytes.functional as bnb
import torch
from comfy_kitchen.tensor import QuantizedTensor

from ..checkpoint import Reader
from ..config import BLOCKSIZES, FOUR_BIT, WEIGHT_DTYPES
from ..errors import CheckpointError
from ..header import TensorInfo
from ..layouts import FourBitLayout
from ..layouts.four_bit import NESTED_BLOCKSIZE

STATE = ".quant_state.bitsandbytes__"
STATISTICS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
LARGEST_STATE = 4096  # bytes; real ones take about 150
LARGEST_SIDE = 2**20  # rows or columns
LARGEST_OFFSET = torch.finfo(torch.float32).max
DAMAGED_REMEDY = "The file is damaged, or was not written by bitsandbytes: download it again, or use another."


@dataclass(frozen=True)
class FourBit:
    """A packed weight ``(rows, columns)``, checked against the file's header.

    Attributes:
        nested_offset: what the file adds to the expanded absmax; None where the absmax is not nested.
    """

    path: str
    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    quant_type: str
    blocksize: int
    nested_offset: float | None

    @property
    def nested(self) -> bool:
        return self.nested_offset is not None

    @property
    def packing(self) -> str:
        """What can be stacked without being unpacked has the same of these."""
        return f"{self.quant_type} blocksize {self.blocksize}"

    @property
    def expanded_nbytes(self) -> int:
        """Bytes once it is stacked with others, which needs the absmax of every block in float32."""
        return FourBitLayout.nbytes_of(self.shape, self.blocksize, nested=False)

    @property
    def nbytes(self) -> int:
        return FourBitLayout.nbytes_of(self.shape, self.blocksize, self.nested)

    def read(self, reader: Reader, device: torch.device) -> QuantizedTensor:
        """The packed weight on ``device``.

        Raises:
            CheckpointError: its code table is not bitsandbytes' own, or a statistic makes weights that are not finite.
        """

        def statistic(suffix: str) -> torch.Tensor:
            tensor = reader.get(self.name + suffix, device)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise CheckpointError(
                    self.path, f"has values in {self.name}{suffix} that are not finite.", DAMAGED_REMEDY
                )
            return tensor

        code = bnb.get_4bit_type(self.quant_type, device=device)
        # other writers may round the table; its values are 0.005 apart and more
        if not torch.allclose(statistic(".quant_map"), code, atol=1e-4):
            raise CheckpointError(
                self.path,
                f"packs {self.name} with a code table that is not the {self.quant_type} of bitsandbytes.",
                "Use the model's 16-bit file.",
            )
        nested: dict[str, Any] = {}
        if self.nested:
            nested = {
                "absmax_8bit": statistic(".absmax"),
                "absmax_code": statistic(".nested_quant_map"),
                "absmax_offset": torch.tensor(self.nested_offset, dtype=torch.float32, device=device),
            }
        scale_name = ".nested_absmax" if self.nested else ".absmax"
        scale = statistic(scale_name)
        # Below zero is no fault: nested statistics, once expanded, may be so in a block of zeros.
        largest = scale.abs().max()
        if self.nested:
            largest = largest * nested["absmax_code"].abs().max() + nested["absmax_offset"].abs()
        if not largest <= torch.finfo(self.dtype).max:
            raise CheckpointError(
                self.path,
                f"has values in {self.name}{scale_name} that are too large for {_dtype_name(self.dtype)} weights.",
                DAMAGED_REMEDY,
            )
        params = FourBitLayout.Params(
            scale=scale,
            orig_dtype=self.dtype,
            orig_shape=self.shape,
            quant_type=self.quant_type,
            blocksize=self.blocksize,
            **nested,
        )
        # quant_storage may have been any dtype; the bytes are the same
        data = reader.get(self.name, device).reshape(-1).view(torch.uint8).reshape(-1, 1)
        return QuantizedTensor(data, FourBitLayout.NAME, params)


def four_bit(path: str, name: str, state_name: str, tensors: Mapping[str, TensorInfo], reader: Reader) -> FourBit:
    """The packed weight ``name``, described by the JSON in ``state_name``.

    Raises:
        CheckpointError: the description is unusable, or what the header says of the weight does not fit it.
    """

    def refuse(tensor: str, cause: str):
        raise CheckpointError(path, f"cannot unpack {name}: {tensor} {cause}.", DAMAGED_REMEDY)

    def require(suffix: str, shape: tuple[int, ...], dtype: torch.dtype):
        info = tensors.get(name + suffix)
        if info is None:
            refuse(name + suffix, "is missing")
        if info.shape != shape or info.dtype != dtype:
            found = f"{info.shape} of {_dtype_name(info.dtype)}"
            refuse(name + suffix, f"is {found}, but has to be {shape} of {_dtype_name(dtype)}")

    state = _state(path, state_name, tensors, reader)
    quant_type = state_name.rpartition("__")[2]
    if quant_type not in FOUR_BIT or state.get("quant_type") != quant_type:
        refuse(state_name, f"says quant_type {reprlib.repr(state.get('quant_type'))}")
    shape, blocksize, dtype = state.get("shape"), state.get("blocksize"), state.get("dtype")
    sides = shape if isinstance(shape, list) and len(shape) == 2 else [0]
    if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
        refuse(state_name, f"says shape {reprlib.repr(shape)}")
    if type(blocksize) is not int or blocksize not in BLOCKSIZES:
        refuse(state_name, f"says blocksize {reprlib.repr(blocksize)}")
    if not isinstance(dtype, str) or dtype not in WEIGHT_DTYPES:
        refuse(state_name, f"says dtype {reprlib.repr(dtype)}")

    weight = tensors[name]
    numbers = math.prod(shape)
    stored = math.prod(weight.shape) * (weight.dtype.itemsize if weight.dtype else 0)
    if stored != math.ceil(numbers / 2):
        refuse(name, f"has {stored} bytes, but shape {tuple(shape)} needs {math.ceil(numbers / 2)}")
    blocks = math.ceil(numbers / blocksize)
    require(".quant_map", (16,), torch.float32)
    nested_offset = None
    if name + ".nested_absmax" in tensors or "nested_offset" in state:
        nested_offset = state.get("nested_offset")
        # written so that NaN fails too
        if type(nested_offset) not in (int, float) or not abs(nested_offset) <= LARGEST_OFFSET:
            refuse(state_name, f"says nested_offset {reprlib.repr(nested_offset)}")
        if state.get("nested_blocksize") != NESTED_BLOCKSIZE or state.get("nested_dtype") != "float32":
            refuse(
                state_name,
                f"says nested_blocksize {reprlib.repr(state.get('nested_blocksize'))} of "
                f"{reprlib.repr(state.get('nested_dtype'))}, "
                f"but bitsandbytes only has {NESTED_BLOCKSIZE} of float32",
            )
        require(".absmax", (blocks,), torch.uint8)
        require(".nested_absmax", (math.ceil(blocks / NESTED_BLOCKSIZE),), torch.float32)
        require(".nested_quant_map", (256,), torch.float32)
    else:
        require(".absmax", (blocks,), torch.float32)
    return FourBit(path, name, tuple(shape), WEIGHT_DTYPES[dtype], quant_type, blocksize, nested_offset)


def _state(path: str, name: str, tensors: Mapping[str, TensorInfo], reader: Reader) -> dict[str, Any]:
    info = tensors[name]
    if info.dtype is not torch.uint8 or not 0 < math.prod(info.shape) <= LARGEST_STATE:
        raise CheckpointError(path, f"has no usable description of a packed weight in {name}.", DAMAGED_REMEDY)
    try:
        state = json.loads(bytes(reader.get_tensor(name).flatten().tolist()))
        if not isinstance(state, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"has no usable JSON in {name} ({error}).", DAMAGED_REMEDY) from error
    return state


def _dtype_name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype else "an unknown dtype"
