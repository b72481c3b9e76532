"""The T5 encoder's configuration, read from the shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .assembly import Assembly
from .errors import CheckpointError
from .flux.config import count_blocks
from .shapes import shape_of
from .stored import Contents

BLOCK = "encoder.block."
BUCKETS = 32  # relative-position buckets, the same in every T5


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder, in the terms of transformers' ``T5Config``."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    vocab_size: int

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Linear module -> (rows, columns) of its weight.

        ``wo``, which transformers always leaves at 16 bit, is among them. transformers keeps it because it casts
        activations to ``wo.weight.dtype``, which a packed weight has not; nothing here does. Measured on the T5 of
        ``tests/assets/tiny_flux``, 20 prompts, products in float32 on a CPU, relative error of the text states
        with ``wo`` packed / left: nf4 0.100 / 0.096, fp4 0.133 / 0.118, int8 0.0136 / 0.0115. It is a third of a
        T5's linear weights. To leave it, put ``wo`` on the skip list.
        """
        inner = self.d_kv * self.num_heads
        shapes: dict[str, tuple[int, int]] = {}
        for i in range(self.num_layers):
            attention, feed_forward = f"{BLOCK}{i}.layer.0.SelfAttention", f"{BLOCK}{i}.layer.1.DenseReluDense"
            shapes |= {f"{attention}.{name}": (inner, self.d_model) for name in "qkv"}
            shapes |= {
                f"{attention}.o": (self.d_model, inner),
                f"{feed_forward}.wi_0": (self.d_ff, self.d_model),
                f"{feed_forward}.wi_1": (self.d_ff, self.d_model),
                f"{feed_forward}.wo": (self.d_model, self.d_ff),
            }
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape, for every tensor of the encoder."""
        shapes: dict[str, tuple[int, ...]] = {
            "shared.weight": (self.vocab_size, self.d_model),
            "encoder.final_layer_norm.weight": (self.d_model,),
            f"{BLOCK}0.layer.0.SelfAttention.relative_attention_bias.weight": (BUCKETS, self.num_heads),
        }
        shapes |= {f"{module}.weight": shape for module, shape in self.linear_shapes().items()}
        for i in range(self.num_layers):
            shapes |= {f"{BLOCK}{i}.layer.{part}.layer_norm.weight": (self.d_model,) for part in (0, 1)}
        return shapes


def read_t5_config(path: str, tensors: Mapping[str, Assembly]) -> T5Config:
    """Derive the configuration from shapes alone.

    Args:
        path: the file, for messages.
        tensors: by transformers' names.

    Raises:
        CheckpointError: the shapes are those of no T5 v1.1 encoder.
    """

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(path, tensors, name)

    attention = f"{BLOCK}0.layer.0.SelfAttention"
    for name in ("shared.weight", f"{attention}.relative_attention_bias.weight"):
        if name in tensors and tensors[name].packing:
            raise CheckpointError(
                path,
                f"holds {name} packed, which is looked up, not multiplied by.",
                "Use the model's 16-bit file, or one that bitsandbytes packed.",
            )
    vocab_size, d_model = shape("shared.weight")
    num_heads = shape(f"{attention}.relative_attention_bias.weight")[1]
    inner = shape(f"{attention}.q.weight")[0]
    if inner % num_heads:
        raise CheckpointError(
            path,
            f"has {num_heads} heads over {inner} attention channels, which no T5 has.",
            "Choose a T5 v1.1 encoder, such as t5xxl_fp16.safetensors.",
        )
    return T5Config(
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=shape(f"{BLOCK}0.layer.1.DenseReluDense.wi_0.weight")[0],
        num_heads=num_heads,
        num_layers=count_blocks(tensors, BLOCK),
        vocab_size=vocab_size,
    )


def encoder_tensors(contents: Contents, prefix: str) -> dict[str, Assembly]:
    """The encoder's tensors, without their ``prefix``. A decoder's tensors are left out.

    transformers may store the embedding as ``encoder.embed_tokens`` instead of, or beside, ``shared``.
    """
    tensors = {name[len(prefix) :]: Assembly((tensor,)) for name, tensor in contents.tensors.items()}
    embedding = tensors.pop("encoder.embed_tokens.weight", None)
    if embedding is not None:
        tensors.setdefault("shared.weight", embedding)
    return {name: t for name, t in tensors.items() if name.startswith("encoder.") or name == "shared.weight"}
