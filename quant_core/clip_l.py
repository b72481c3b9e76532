"""CLIP-L's configuration, read from the shapes of a checkpoint's tensors. CLIP-L is small and never quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .assembly import Assembly
from .errors import CheckpointError
from .flux.config import count_blocks
from .shapes import shape_of

LAYER = "text_model.encoder.layers."
HEAD_DIM = 64  # of every CLIP text encoder


@dataclass(frozen=True)
class ClipLConfig:
    """Sizes of a CLIP text encoder, in the terms of transformers' ``CLIPTextConfig``."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    max_position_embeddings: int


def read_clip_l_config(path: str, tensors: Mapping[str, Assembly]) -> ClipLConfig:
    """Derive the configuration from shapes alone.

    Args:
        path: the file, for messages.
        tensors: by transformers' names.

    Raises:
        CheckpointError: the shapes are those of no CLIP text encoder.
    """
    positions, hidden = shape_of(path, tensors, "text_model.embeddings.position_embedding.weight")
    if hidden % HEAD_DIM:
        raise CheckpointError(
            path,
            f"has hidden size {hidden}, which is no multiple of {HEAD_DIM}.",
            "Choose a CLIP-L text encoder, such as clip_l.safetensors.",
        )
    return ClipLConfig(
        hidden_size=hidden,
        intermediate_size=shape_of(path, tensors, f"{LAYER}0.mlp.fc1.weight")[0],
        num_attention_heads=hidden // HEAD_DIM,
        num_hidden_layers=count_blocks(tensors, LAYER),
        max_position_embeddings=positions,
    )
