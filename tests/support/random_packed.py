"""Packed weights of random bytes: as large as real ones, and made in no time."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import torch
from comfy_kitchen.tensor import QuantizedTensor
from dequantized import dequantized_4bit
from quantflux.quant_core.layouts import FourBitLayout, Int8Layout

LARGEST = 7 * 3072 * 3072  # numbers of FLUX's largest weight
# precision, blocksize, nested
FORMATS = {
    "nf4": ("nf4", 64, False),
    "fp4 blocksize 4096": ("fp4", 4096, False),
    "nf4 nested": ("nf4", 64, True),
    "fp4 nested blocksize 128": ("fp4", 128, True),
    "int8": ("int8", 0, False),
}
TABLE = bnb.create_dynamic_map()  # what nested absmax values are looked up in


def random_bytes() -> torch.Tensor:
    """As many as the largest weight has in int8, and some more to begin at."""
    return torch.randint(0, 256, (LARGEST + 2**20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def weight_and_values(shape, form, generator, random_bytes) -> tuple[QuantizedTensor, torch.Tensor]:
    """(a packed weight of random bytes and random statistics, what bitsandbytes says it stands for).

    Random bytes hold every code as often as any other, and need no quantizing, which is what takes long on a CPU.
    """
    precision, blocksize, nested = form
    numbers = shape[0] * shape[1]
    # another place for every weight: parts are not to be the same
    bytes_ = random_bytes[int(torch.randint(2**20, (), generator=generator)) :]
    if precision == "int8":
        data = bytes_[:numbers].view(torch.int8).reshape(shape)
        scale = torch.rand(shape[0], generator=generator)
        params = Int8Layout.Params(scale=scale, orig_dtype=torch.bfloat16, orig_shape=shape)
        values = bnb.int8_vectorwise_dequant(data, scale).to(torch.bfloat16)
        return QuantizedTensor(data, Int8Layout.NAME, params), values
    data = bytes_[: numbers // 2].reshape(-1, 1)
    blocks = numbers // blocksize
    if nested:
        absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator)
        scale = torch.rand(-(-blocks // 256), generator=generator)
        # an offset of its own for each weight: this is why nested statistics cannot be stacked as they are
        offset = 1 + torch.rand((), generator=generator)
        inner = bnb.QuantState(absmax=scale, code=TABLE, blocksize=256, dtype=torch.float32)
        fields = {"absmax_8bit": absmax, "absmax_code": TABLE, "absmax_offset": offset}
    else:
        absmax = scale = torch.rand(blocks, generator=generator)
        offset = inner = None
        fields = {}
    state = bnb.QuantState(
        absmax=absmax, shape=torch.Size(shape), code=bnb.get_4bit_type(precision, device="cpu"), blocksize=blocksize,
        quant_type=precision, dtype=torch.bfloat16, offset=offset, state2=inner,
    )  # fmt: skip
    params = FourBitLayout.Params(
        scale=scale, orig_dtype=torch.bfloat16, orig_shape=shape, quant_type=precision, blocksize=blocksize, **fields
    )
    return QuantizedTensor(data, FourBitLayout.NAME, params), dequantized_4bit(data, state)
