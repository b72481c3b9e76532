"""The three turns that models take on the device: encoding the prompt, sampling, and decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..clip_l import ClipLConfig
from ..source import Source
from .activations import TEXT_TOKENS, Tokens, encoder_moment, sampling_moments
from .card import Card
from .residency import resident_nbytes
from .scratch import linear_scratch
from .weights import Weights, module_sizes, rounding, weights

CLIP_L = ClipLConfig(768, 3072, 12, 12, 77)
CLIP_L_NBYTES = 2 * sum(torch.Size(shape).numel() for shape in CLIP_L.tensor_shapes().values())  # float16
# FLUX's autoencoder, which every FLUX.1 shares: https://huggingface.co/black-forest-labs/FLUX.1-dev, ae.safetensors
VAE_PARAMETERS = 83_819_683
VAE_CHANNELS = 256  # of the last upsampling and of what comes out of it
# A pixel at the decoder's last upsampling, where most lives at one time: the picture of half the size, the upsampled
# one and what the convolution makes of it; and cuDNN's copies of the last two, with channels last.
# 640 is the most that tensors of the host's decoder hold together; with the copies, 1088 is 2.28 GiB at 1024x1024 in
# bfloat16, weights included, where 2.33 GiB was measured on an H100 (2026-11-25).
VAE_VALUES_PER_PIXEL = VAE_CHANNELS // 4 + 2 * VAE_CHANNELS + 2 * VAE_CHANNELS


@dataclass(frozen=True)
class Turn:
    """Bytes that a model needs on its device while it works.

    Attributes:
        weights: of the model.
        rounding: what torch's allocator adds to them.
        scratch: temporaries of the product at the largest moment.
        activations: what else lives at that moment.
        resident: of the weights, those that the host will keep on the device.
        moment: what is computed when most is needed.
    """

    weights: Weights
    rounding: int
    scratch: int
    activations: int
    resident: int
    moment: str

    @property
    def peak(self) -> int:
        """Bytes with all weights on the device."""
        return self.weights.nbytes + self.rounding + self.scratch + self.activations

    @property
    def offloaded(self) -> int:
        return self.weights.nbytes - self.resident

    @property
    def is_whole(self) -> bool:
        return not self.offloaded


def sampling(source: Source, tokens: Tokens, dtype: torch.dtype, card: Card) -> Turn:
    """The transformer's turn: one step, all pictures of the batch at once.

    Args:
        dtype: of the activations.
    """
    found = []
    for moment in sampling_moments(source.model, tokens, dtype.itemsize):
        scratch = max(
            (linear_scratch(source, name, moment.rows, card.fused, dtype) for name in moment.modules), default=0
        )
        found.append((moment.nbytes + scratch, scratch, moment))
    _, scratch, moment = max(found, key=lambda one: one[0])
    return _turn(
        source,
        scratch + card.workspace,
        moment.nbytes,
        moment.name,
        card.reserve["int8" if source.uses_int8 else source.config.precision, dtype.itemsize],
        card,
    )


def encoding(source: Source, compute_dtype: torch.dtype, card: Card) -> Turn:
    """T5's turn, CLIP-L beside it: one prompt of up to 256 tokens, in float32 as the host runs text encoders.

    Args:
        compute_dtype: of the products with packed weights.
    """
    moment = encoder_moment(source.model)
    fused = card.fused and not card.encoder_on_cpu
    scratch = max(
        linear_scratch(source, name, TEXT_TOKENS, fused, torch.float32, compute_dtype) for name in moment.modules
    )
    workspace = 0 if card.encoder_on_cpu else card.workspace
    turn = _turn(source, scratch + workspace, moment.nbytes, moment.name, card.encoder_reserve, card, CLIP_L_NBYTES)
    if card.encoder_on_cpu:
        return Turn(turn.weights, 0, turn.scratch, turn.activations, turn.weights.nbytes, turn.moment)
    return turn


def decoding(width: int, height: int, batch: int, card: Card) -> Turn:
    """The VAE's turn: as many pictures at once as the host decodes. Where one is too much it decodes in tiles, which
    take less."""
    own = Weights(plain=VAE_PARAMETERS * card.vae_dtype.itemsize)
    free = card.available - own.nbytes
    at_once = max(1, min(batch, int(free / card.decode_estimate)))
    activations = at_once * width * height * VAE_VALUES_PER_PIXEL * card.vae_dtype.itemsize
    return Turn(own, 0, 0, activations, own.nbytes, "the last upsampling")


def _turn(
    source: Source, scratch: int, activations: int, moment: str, reserve: int, card: Card, beside: int = 0
) -> Turn:
    """``beside``: bytes of a plain model that is loaded with it."""
    own = weights(source)
    own = Weights(own.packed, own.statistics, own.plain + beside)
    sizes = [*module_sizes(source), *([beside] if beside else [])]
    resident = resident_nbytes(sizes, card.room(reserve), card.buffers)
    return Turn(own, 0 if card.is_cpu else rounding(source), scratch, activations, resident, moment)
