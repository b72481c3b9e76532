"""What the plan needs to know of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """A device's memory in bytes, and how the host divides it.

    Attributes:
        name: as shown.
        is_cpu: there is no GPU; the figures are those of the main memory.
        total: of the device.
        free: at the moment.
        loaded: bytes of models on the device, which the host takes off when another needs the room.
        workspace: cuBLAS's own buffer.
        reserve: bytes that the host leaves beside the transformer's weights, by precision and bytes of an activation.
        encoder_reserve: the same beside the text encoders' and the VAE's.
        least_share: the least share of the memory that the host gives to weights, whatever the reserve.
        whole: the host loads models whole, without looking at the room.
        none: the host leaves all weights off the device.
        buffers: layers on their way to the device at one time, while some are offloaded.
        encoder_on_cpu: the host runs text encoders on the CPU.
        vae_on_cpu: the host decodes on the CPU.
        vae_dtype: of the VAE's weights and activations.
        decode_estimate: bytes by which the host judges how many pictures it decodes at once, for one picture.
        int8: the device can multiply in 8 bit; ``float8``: in float8.
        fused: our own kernels run on the device.
        first_use: bytes that CUDA's libraries will take for themselves when they are first used.
    """

    name: str
    is_cpu: bool
    total: int
    free: int
    loaded: int
    workspace: int
    reserve: Mapping[tuple[str, int], int]
    encoder_reserve: int
    least_share: float
    whole: bool
    none: bool
    buffers: int
    encoder_on_cpu: bool
    vae_on_cpu: bool
    vae_dtype: torch.dtype
    decode_estimate: int
    int8: bool = True
    float8: bool = True
    fused: bool = False
    first_use: int = 0

    @property
    def available(self) -> int:
        """Bytes that a model can have once the host has taken all others off the device."""
        return max(0, self.free + self.loaded - self.first_use)

    def room(self, reserve: int) -> float:
        """Bytes that the host gives to a model's weights beside ``reserve``.

        Source: ``load_models_gpu`` in the host's comfy/model_management.py.
        """
        if self.is_cpu or self.whole:
            return float("inf")
        if self.none:
            return 0
        share = min(self.available * self.least_share, self.available - self.encoder_reserve)
        return max(0, self.available - reserve, share)
