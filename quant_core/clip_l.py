"""CLIP-L's configuration, read from the shapes of a checkpoint's tensors. CLIP-L is small and never quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .assembly import Assembly
from .errors import CheckpointError
from .flux.config import count_blocks
from .shapes import require_shapes, shape_of

LAYER = "text_model.encoder.layers."
WIDTH = 768
HEAD_DIM = 64  # of every CLIP text encoder
VOCABULARY = 49408  # of CLIP's tokenizer


@dataclass(frozen=True)
class ClipLConfig:
    """Sizes of a CLIP text encoder, in the terms of transformers' ``CLIPTextConfig``."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    max_position_embeddings: int

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape, for every tensor that the encoder needs. The projection is not among them."""
        hidden, between = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "text_model.embeddings.token_embedding.weight": (VOCABULARY, hidden),
            "text_model.embeddings.position_embedding.weight": (self.max_position_embeddings, hidden),
        }
        linears = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (between, hidden), "mlp.fc2": (hidden, between)}
        norms = ["text_model.final_layer_norm"]
        for i in range(self.num_hidden_layers):
            for name, (rows, columns) in linears.items():
                shapes |= {f"{LAYER}{i}.{name}.weight": (rows, columns), f"{LAYER}{i}.{name}.bias": (rows,)}
            norms += [f"{LAYER}{i}.layer_norm1", f"{LAYER}{i}.layer_norm2"]
        for norm in norms:
            shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
        return shapes


def read_clip_l_config(path: str, tensors: Mapping[str, Assembly]) -> ClipLConfig:
    """Derive the configuration from shapes alone.

    Args:
        path: the file, for messages.
        tensors: by transformers' names.

    Raises:
        CheckpointError: the shapes are those of no CLIP text encoder, tensors are missing, or some are packed.
    """
    packed = next((tensor.name for tensor in tensors.values() if tensor.packing), None)
    if packed is not None:
        raise CheckpointError(
            path, f"holds {packed} packed, but CLIP-L is read at 16 bit only.", "Use the 16-bit file of CLIP-L."
        )
    positions, hidden = shape_of(path, tensors, "text_model.embeddings.position_embedding.weight")
    if hidden % HEAD_DIM:
        raise CheckpointError(
            path,
            f"has hidden size {hidden}, which is no multiple of {HEAD_DIM}.",
            "Choose a CLIP-L text encoder, such as clip_l.safetensors.",
        )
    if hidden > WIDTH:
        raise CheckpointError(
            path,
            f"has hidden size {hidden}, but CLIP-L has {WIDTH}; CLIP-H has 1024, CLIP-G 1280.",
            "Choose a CLIP-L text encoder here, such as clip_l.safetensors; for CLIP-G use DualCLIPLoader, with type "
            "sdxl or sd3.",
        )
    config = ClipLConfig(
        hidden_size=hidden,
        intermediate_size=shape_of(path, tensors, f"{LAYER}0.mlp.fc1.weight")[0],
        num_attention_heads=hidden // HEAD_DIM,
        num_hidden_layers=count_blocks(tensors, LAYER),
        max_position_embeddings=positions,
    )
    # the host would leave what is missing at random values
    require_shapes(path, tensors, config.tensor_shapes(), "CLIP-L")
    return config
