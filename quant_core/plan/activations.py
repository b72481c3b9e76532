"""What lives at the same time while FLUX and T5 compute, beside their weights.

A moment is a point in a block where much is alive. What lives there is counted as the host's classes hold it
(comfy/ldm/flux of 0.3.75; newer hosts rotate queries and keys in one kernel and need less there). The tests run those
classes at full size on the meta device, and count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..flux.config import PATCH_SIZE, FluxConfig
from ..flux.names import native_names
from ..t5 import BLOCK, T5Config

TEXT_TOKENS = 256  # the host pads shorter prompts to so many
LATENT = 8  # pixels to a latent pixel, each way
FLOAT32 = 4


@dataclass(frozen=True)
class Tokens:
    """Tokens of a step, over all pictures of the batch."""

    image: int
    text: int

    @property
    def all(self) -> int:
        return self.image + self.text

    @classmethod
    def of(cls, width: int, height: int, batch: int) -> Tokens:
        """Those of pictures of ``width`` × ``height`` pixels, with prompts of up to 256 tokens.

        >>> Tokens.of(1024, 1024, 1)
        Tokens(image=4096, text=256)
        """
        patches = math.prod(math.ceil(side // LATENT / PATCH_SIZE) for side in (width, height))
        return cls(batch * patches, batch * TEXT_TOKENS)


@dataclass(frozen=True)
class Moment:
    """Attributes:
    name: what is computed.
    nbytes: that live, inputs and outputs included, scratch of the product excluded.
    modules: the linear layers of which one is at work; none between products.
    rows: of their inputs.
    """

    name: str
    nbytes: int
    modules: tuple[str, ...] = ()
    rows: int = 0


def sampling_moments(model: FluxConfig, tokens: Tokens, itemsize: int) -> list[Moment]:
    """The moments of FLUX that can be the largest.

    Args:
        itemsize: bytes of an activation.
    """
    hidden, mlp = model.hidden_size * itemsize, model.mlp_size * itemsize
    # rotating a query or key: its float32 copy and result, and that cast back; no copies where it is float32 already
    rotation = hidden if itemsize == FLOAT32 else 2 * FLOAT32 * model.hidden_size + hidden
    kept = _kept(model, tokens, itemsize)
    every, image = tokens.all, tokens.image

    def moment(name: str, nbytes: int, linear: str = "", rows: int = 0) -> Moment:
        modules = native_names([linear], model.depth, model.depth_single_blocks) if linear else ()
        return Moment(name, kept + nbytes, tuple(modules), rows)

    projected = 3 * hidden + mlp  # queries, keys, values and hidden states of linear1, in one tensor
    return [
        # input and output
        moment("single block, linear1", every * (hidden + projected), "single_blocks.{}.linear1", every),
        # normalised queries and keys, rotated queries, and keys on their way
        moment("single block, rotation of keys", every * (projected + 2 * hidden + hidden + rotation)),
        # normalised and rotated queries and keys, and the output
        moment("single block, attention", every * (projected + 2 * hidden + 2 * hidden + hidden)),
        # attention and activated hidden states, both in one tensor, and the output
        moment("single block, linear2", every * (2 * (hidden + mlp) + hidden), "single_blocks.{}.linear2", every),
        # the two streams of a double block one after the other; attention's output is kept until it ends
        moment("double block, qkv", image * 4 * hidden, "double_blocks.{}.img_attn.qkv", image),
        moment("double block, mlp.0", every * hidden + image * (hidden + mlp), "double_blocks.{}.img_mlp.0", image),
        moment("double block, activation", every * hidden + image * (hidden + 2 * mlp)),
        moment("double block, mlp.2", every * hidden + image * (2 * hidden + mlp), "double_blocks.{}.img_mlp.2", image),
    ]


def _kept(model: FluxConfig, tokens: Tokens, itemsize: int) -> int:
    """Bytes that live through all blocks."""
    residual = tokens.all * model.hidden_size * itemsize
    text = (
        tokens.text * model.hidden_size * itemsize
    )  # its states before the single blocks are kept beside the residual
    patches = tokens.image * model.in_channels * itemsize
    positions = 2 * tokens.all * len(model.axes_dim) * FLOAT32  # apart, and both together
    rotations = tokens.all * 2 * model.head_dim * FLOAT32  # a 2x2 matrix for each pair of channels
    return residual + text + patches + positions + rotations


def encoder_moment(model: T5Config) -> Moment:
    """The moment of T5 at which most lives, in float32: the last product of a block."""
    states, between = model.d_model * FLOAT32, model.d_ff * FLOAT32
    bias = model.num_heads * TEXT_TOKENS**2 * FLOAT32
    # residual, normalised input and output; both branches of the gate, and their product
    nbytes = bias + TEXT_TOKENS * (3 * states + 3 * between)
    modules = tuple(f"{BLOCK}{i}.layer.1.DenseReluDense.wo" for i in range(model.num_layers))
    return Moment("T5's last product", nbytes, modules, TEXT_TOKENS)
