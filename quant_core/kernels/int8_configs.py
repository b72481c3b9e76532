"""Block shapes of the int8 product, by card and size. ``benchmarks/int8_kernels.py`` measures them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MatmulConfig:
    """How the product is cut up.

    Attributes:
        block_m: tokens of a tile; ``block_n`` its rows of the weight; ``block_k`` the columns taken at a time.
        stages: blocks of columns in flight.
        group: tiles of tokens that run next to each other, for the L2 cache.
        kernel: ``plain`` Triton runs everywhere; ``hopper`` is Gluon (``int8_hopper``).
        persistent: ``hopper`` only: so many programs a multiprocessor go through the tiles; 0: one program a tile.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group: int = 8
    kernel: str = "plain"
    persistent: int = 0


OUTLIER_CAPACITY = 512  # columns that are gathered; more are multiplied from where they lie
FEW_TOKENS = 16  # modulation: one token an image
SOME_TOKENS = 512  # the text stream of the double blocks

# Any card: they fit the 99 KiB of shared memory that the smaller ones have.
FEW = MatmulConfig(16, 64, 256, warps=4, stages=3)
SOME = MatmulConfig(64, 64, 128, warps=4, stages=4)
MANY = MatmulConfig(128, 128, 64, warps=4, stages=3)

# Compute capability 9.0, measured on an H100 (2026-11-25): within 7 % of the best of 16 at each of FLUX's sizes, with a
# threshold or without
HOPPER = MatmulConfig(128, 256, 128, warps=8, stages=4, kernel="hopper", persistent=1)
HOPPER_SOME_WIDE = MatmulConfig(128, 128, 128, warps=4, stages=3, kernel="hopper", persistent=2)
HOPPER_SOME_LONG = MatmulConfig(64, 64, 256, warps=4, stages=3)


def choose(
    tokens: int, rows: int, columns: int, itemsize: int, capability: tuple[int, int], plain: bool = False
) -> MatmulConfig:
    """The configuration for ``tokens`` times a weight ``(rows, columns)``.

    Args:
        itemsize: bytes of an input; float32's outlier columns need small tiles.
        plain: only the kernel that runs everywhere.
    """
    if tokens <= FEW_TOKENS:
        return FEW
    if itemsize > 2:
        return SOME
    if capability[0] != 9:
        return SOME if tokens <= SOME_TOKENS else MANY
    some = HOPPER_SOME_WIDE if rows > columns else HOPPER_SOME_LONG
    config = some if tokens <= SOME_TOKENS else HOPPER
    if plain and config.kernel != "plain":
        return SOME if tokens <= SOME_TOKENS else MANY
    return config
