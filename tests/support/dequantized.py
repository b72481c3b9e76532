"""What bitsandbytes unpacks."""

from __future__ import annotations

import copy

import bitsandbytes.functional as bnb
import torch

# bitsandbytes 0.50.2 takes other blocks' absmax there, where a block of 4-bit weights runs across rows
CPU_MIXES_BLOCKS_UP = torch.backends.cpu.get_cpu_capability() == "AVX512"


def dequantized_4bit(data: torch.Tensor, state: bnb.QuantState) -> torch.Tensor:
    """The weight, unpacked as one row, in which all blocks are what they are on every CPU."""
    flat = copy.copy(state)
    flat.shape = (state.shape.numel(),)
    return bnb.dequantize_4bit(data, flat).reshape(state.shape)
