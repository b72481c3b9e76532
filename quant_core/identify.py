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
        lookalikes: other kinds that may have its marker too, beside their own.
    """

    marker: str
    description: str
    loader: str
    prefixes: tuple[str, ...] = ("",)
    component: str = ""
    lookalikes: tuple[Kind, ...] = ()


_NEAR_FLUX = (
    Kind("controlnet_", "a ControlNet", "ControlNetLoader"),
    Kind("double_stream_modulation_img.lin", "a FLUX.2 transformer", "UNETLoader"),
    Kind("distilled_guidance_layer.", "a Chroma transformer", "UNETLoader"),
    Kind("txt_in.individual_token_refiner.", "a HunyuanVideo transformer", "UNETLoader"),
)
FLUX = Kind(
    "double_blocks.0.img_attn.qkv.weight",
    "a FLUX transformer",
    "Load Quantized Transformer",
    prefixes=("", "model.diffusion_model.", "diffusion_model.", "model."),
    component="transformer",
    lookalikes=_NEAR_FLUX,
)
FLUX_DIFFUSERS = Kind(
    "single_transformer_blocks.0.proj_mlp.weight",
    "a FLUX transformer under diffusers' names",
    "Load Quantized Transformer",
    component="transformer",
    lookalikes=_NEAR_FLUX,
)
# T5 has position biases in its first block alone
_UMT5 = Kind(
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    "a UMT5 text encoder",
    "CLIPLoader, with type wan",
)
T5 = Kind(
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "a T5 text encoder",
    "Load Quantized T5, as t5_name",
    prefixes=("", "text_encoders.t5xxl.transformer."),
    component="text_encoder_2",
    lookalikes=(_UMT5,),
)
# CLIP-L has 12 layers
_CLIP_G = Kind(
    "text_model.encoder.layers.31.mlp.fc1.weight",
    "a CLIP-G text encoder",
    "DualCLIPLoader, with type sdxl or sd3",
)
CLIP_L = Kind(
    "text_model.encoder.layers.0.mlp.fc1.weight",
    "a CLIP-L text encoder",
    "Load Quantized T5, as clip_l_name",
    prefixes=("", "text_encoders.clip_l.transformer."),
    component="text_encoder",
    lookalikes=(_CLIP_G,),
)

# more telling first: a FLUX LoRA also names double_blocks
_KINDS = (
    Kind("lora_down", "a LoRA", "LoraLoaderModelOnly"),
    Kind("lora_A", "a LoRA", "LoraLoaderModelOnly"),
    Kind("lora_up", "a LoRA", "LoraLoaderModelOnly"),
    *_NEAR_FLUX,
    FLUX,
    FLUX_DIFFUSERS,
    Kind("joint_blocks.0.", "an SD3 transformer", "UNETLoader"),
    Kind("input_blocks.0.0.weight", "a U-Net of Stable Diffusion", "UNETLoader or CheckpointLoaderSimple"),
    _UMT5,
    T5,
    _CLIP_G,
    CLIP_L,
    Kind("decoder.up.0.", "a VAE", "VAELoader"),
    Kind("decoder.up_blocks.0.", "a VAE", "VAELoader"),
    Kind("taesd_decoder.", "a small VAE (TAESD)", "VAELoader"),
)


def identify(names: Iterable[str]) -> Kind | None:
    """The kind of file that has these tensor ``names``, or None."""
    joined = "\n".join(names)
    return next((kind for kind in _KINDS if kind.marker in joined), None)


def lookalike(names: Iterable[str], kind: Kind, prefix: str = "") -> Kind | None:
    """What the model under ``prefix``, which has the marker of ``kind``, is instead; None if it is that."""
    markers = {prefix + other.marker: other for other in kind.lookalikes}
    return next((other for name in names for marker, other in markers.items() if name.startswith(marker)), None)


def find(checkpoint: Checkpoint, *wanted: Kind) -> tuple[Kind, str]:
    """Which of the ``wanted`` kinds a checkpoint holds, perhaps among others, and under which prefix.

    Raises:
        CheckpointError: it holds none, and the message says what it is and what loads it.
    """
    for kind in wanted:
        for prefix in kind.prefixes:
            if prefix + kind.marker in checkpoint.tensors:
                other = lookalike(checkpoint.tensors, kind, prefix)
                if other is not None:
                    raise _another(checkpoint.path, other, wanted[0])
                return kind, prefix
    found = identify(checkpoint.tensors)
    if found is None or found in wanted:
        raise CheckpointError(
            checkpoint.path,
            f"is not {wanted[0].description}: it has no tensor named {wanted[0].marker}.",
            f"Choose a file that holds {wanted[0].description}.",
        )
    raise _another(checkpoint.path, found, wanted[0])


def _another(path: str, found: Kind, wanted: Kind) -> CheckpointError:
    return CheckpointError(
        path,
        f"is {found.description}, not {wanted.description}.",
        f"Choose {wanted.description} here; for this file use {found.loader}.",
    )
