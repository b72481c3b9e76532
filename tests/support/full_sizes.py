"""The sizes of the real models."""

from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.t5 import T5Config

FLUX_DEV = FluxConfig(64, 64, 3072, 24, 12288, 4096, 768, 19, 38, True)
# one block of each kind: what lives at one time does not depend on how many there are, nor do the shapes of layers
FLUX_BLOCKS = FluxConfig(64, 64, 3072, 24, 12288, 4096, 768, 1, 1, True)
T5_XXL = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24, vocab_size=32128)
