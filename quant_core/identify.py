"""What a checkpoint holds, told from the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .checkpoint import Checkpoint
from .errors import CheckpointError


@dataclass(frozen=True)
class Kind:
    """A sort of model.

    Attributes:
        marker: a part of a tensor name that only it has.
        description: what it is called, with its article.
        loader: the node that reads it.
        prefixes: what may stand before all of its names, where it shares a file with others.
        component: its folder in a pipeline of diffusers.
    """

    marker: str
    description: str
    loader: str
    prefixes: tuple[str, ...] = ("",)
    component: str = ""


FLUX = Kind(
    "double_blocks.0.img_attn.qkv.weight",
    "a FLUX transformer",
    "Load Quantized Transformer",
    prefixes=("", "model.diffusion_model.", "diffusion_model.", "model."),
    component="transformer",
)
FLUX_DIFFUSERS = Kind(
    "single_transformer_blocks.0.proj_mlp.weight",
    "a FLUX transformer under diffusers' names",
    "Load Quantized Transformer",
    component="transformer",
)
T5 = Kind(
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "a T5 text encoder",
    "Load Quantized T5, as t5_name",
    prefixes=("", "text_encoders.t5xxl.transformer."),
    component="text_encoder_2",
)
CLIP_L = Kind(
    "text_model.encoder.layers.0.mlp.fc1.weight",
    "a CLIP-L text encoder",
    "Load Quantized T5, as clip_l_name",
    prefixes=("", "text_encoders.clip_l.transformer."),
    component="text_encoder",
)

# more telling first: a FLUX LoRA also names double_blocks
_KINDS = (
    Kind("lora_down", "a LoRA", "LoraLoaderModelOnly"),
    Kind("lora_A", "a LoRA", "LoraLoaderModelOnly"),
    Kind("lora_up", "a LoRA", "LoraLoaderModelOnly"),
    Kind("controlnet_", "a ControlNet", "ControlNetLoader"),
    Kind("double_stream_modulation_img.lin", "a FLUX.2 transformer", "UNETLoader"),
    Kind("distilled_guidance_layer.", "a Chroma transformer", "UNETLoader"),
    FLUX,
    FLUX_DIFFUSERS,
    Kind("joint_blocks.0.", "an SD3 transformer", "UNETLoader"),
    Kind("input_blocks.0.0.weight", "a U-Net of Stable Diffusion", "UNETLoader or CheckpointLoaderSimple"),
    T5,
    CLIP_L,
    Kind("decoder.up.0.", "a VAE", "VAELoader"),
    Kind("decoder.up_blocks.0.", "a VAE", "VAELoader"),
    Kind("taesd_decoder.", "a small VAE (TAESD)", "VAELoader"),
)


def identify(names: Iterable[str]) -> Kind | None:
    """The kind of file that has these tensor ``names``, or None."""
    joined = "\n".join(names)
    return next((kind for kind in _KINDS if kind.marker in joined), None)


def find(checkpoint: Checkpoint, *wanted: Kind) -> tuple[Kind, str]:
    """Which of the ``wanted`` kinds a checkpoint holds, perhaps among others, and under which prefix.

    Raises:
        CheckpointError: it holds none, and the message says what it is and what loads it.
    """
    for kind in wanted:
        for prefix in kind.prefixes:
            if prefix + kind.marker in checkpoint.tensors:
                return kind, prefix
    found = identify(checkpoint.tensors)
    if found is None or found in wanted:
        raise CheckpointError(
            checkpoint.path,
            f"is not {wanted[0].description}: it has no tensor named {wanted[0].marker}.",
            f"Choose a file that holds {wanted[0].description}.",
        )
    raise CheckpointError(
        checkpoint.path,
        f"is {found.description}, not {wanted[0].description}.",
        f"Choose {wanted[0].description} here; for this file use {found.loader}.",
    )
