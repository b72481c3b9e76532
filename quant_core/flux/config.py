"""The FLUX configuration, read from the shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..assembly import Assembly
from ..errors import CheckpointError
from ..shapes import shape_of
from .names import LINEARS, NORMS, native_names

TIME_CHANNELS = 256  # sinusoidal features of timestep and guidance
PATCH_SIZE = 2
MOST_BLOCKS = 1000  # of one kind; FLUX.1 has 19 and 38
# of 16 parts of a head: one axis for the sequence (index), two for the picture (row, column)
AXES_SIXTEENTHS = (2, 7, 7)


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of a FLUX transformer, in the terms of Black Forest Labs' ``FluxParams``.

    ``in_channels`` and ``out_channels`` count a 2×2 patch: 64 for text to image, 384 in for Fill, 128 in for
    Canny and Depth.
    """

    in_channels: int
    out_channels: int
    hidden_size: int
    num_heads: int
    mlp_size: int
    context_in_dim: int
    vec_in_dim: int
    depth: int
    depth_single_blocks: int
    guidance_embed: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def axes_dim(self) -> list[int]:
        """Rotary dimensions per axis: (16, 56, 56) for heads of 128, in the same proportion for others."""
        return [self.head_dim * part // 16 for part in AXES_SIXTEENTHS]

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Native linear module -> (rows, columns) of its weight."""
        hidden, mlp = self.hidden_size, self.mlp_size
        shapes = {
            "img_in": (hidden, self.in_channels),
            "txt_in": (hidden, self.context_in_dim),
            "time_in.in_layer": (hidden, TIME_CHANNELS),
            "time_in.out_layer": (hidden, hidden),
            "vector_in.in_layer": (hidden, self.vec_in_dim),
            "vector_in.out_layer": (hidden, hidden),
            "guidance_in.in_layer": (hidden, TIME_CHANNELS),
            "guidance_in.out_layer": (hidden, hidden),
            "single_blocks.{}.modulation.lin": (3 * hidden, hidden),
            "single_blocks.{}.linear1": (3 * hidden + mlp, hidden),
            "single_blocks.{}.linear2": (hidden, hidden + mlp),
            "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
            "final_layer.linear": (self.out_channels, hidden),
        }
        for stream in ("img", "txt"):
            shapes |= {
                f"double_blocks.{{}}.{stream}_mod.lin": (6 * hidden, hidden),
                f"double_blocks.{{}}.{stream}_attn.qkv": (3 * hidden, hidden),
                f"double_blocks.{{}}.{stream}_attn.proj": (hidden, hidden),
                f"double_blocks.{{}}.{stream}_mlp.0": (mlp, hidden),
                f"double_blocks.{{}}.{stream}_mlp.2": (hidden, mlp),
            }
        templates = [name for name in LINEARS if self.guidance_embed or not name.startswith("guidance_in")]
        return {
            name: shapes[template]
            for template in templates
            for name in native_names([template], self.depth, self.depth_single_blocks)
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Native tensor -> shape, for every tensor of the model."""
        shapes: dict[str, tuple[int, ...]] = {}
        for module, (rows, columns) in self.linear_shapes().items():
            shapes |= {f"{module}.weight": (rows, columns), f"{module}.bias": (rows,)}
        for name in native_names(NORMS, self.depth, self.depth_single_blocks):
            shapes[name] = (self.head_dim,)
        return shapes


def read_flux_config(path: str, tensors: Mapping[str, Assembly]) -> FluxConfig:
    """Derive the configuration from shapes alone.

    Args:
        path: the file, for messages.
        tensors: by native names.

    Raises:
        CheckpointError: the shapes are those of no FLUX.
    """

    def shape(native: str, dimensions: int = 2) -> tuple[int, ...]:
        return shape_of(path, tensors, native, dimensions)

    hidden, in_channels = shape("img_in.weight")
    (head_dim,) = shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)
    if hidden % head_dim or head_dim % 16 or in_channels % PATCH_SIZE**2:
        raise CheckpointError(
            path,
            f"has hidden size {hidden}, head dimension {head_dim} and {in_channels} input channels, which no FLUX has.",
            "Choose a file of a FLUX.1 model.",
        )
    return FluxConfig(
        in_channels=in_channels,
        out_channels=shape("final_layer.linear.weight")[0],
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        mlp_size=shape("double_blocks.0.img_mlp.0.weight")[0],
        context_in_dim=shape("txt_in.weight")[1],
        vec_in_dim=shape("vector_in.in_layer.weight")[1],
        depth=count_blocks(tensors, "double_blocks."),
        depth_single_blocks=count_blocks(tensors, "single_blocks."),
        guidance_embed="guidance_in.in_layer.weight" in tensors,
    )


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """One more than the highest block number among ``names`` that start with ``prefix``; at most ``MOST_BLOCKS``.

    Names are not trusted: a count of billions would have every tensor of that many blocks listed. With the limit, the
    first block that is missing is found.
    """
    numbers = [name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)]
    counts = (
        int(number) + 1 if len(number) < len(str(MOST_BLOCKS)) else MOST_BLOCKS
        for number in numbers
        if number.isascii() and number.isdecimal()
    )
    return max(counts, default=0)
