"""What a checkpoint holds, told from the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .checkpoint import Checkpoint
from .errors import CheckpointError

# where a FLUX transformer may stand inside a file
TRANSFORMER_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")


@dataclass(frozen=True)
class Kind:
    """A sort of file: ``marker`` is a part of a tensor name that only it has."""

    marker: str
    description: str
    loader: str


FLUX = Kind("double_blocks.0.img_attn.qkv.weight", "a FLUX transformer", "Load Quantized Transformer")
T5 = Kind("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder", "Load Quantized T5, as t5_name")
CLIP_L = Kind(
    "text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP-L text encoder", "Load Quantized T5, as clip_l_name"
)

# more telling first: a FLUX LoRA also names double_blocks
_KINDS = (
    Kind("lora_down", "a LoRA", "LoraLoaderModelOnly"),
    Kind("lora_A", "a LoRA", "LoraLoaderModelOnly"),
    Kind("lora_up", "a LoRA", "LoraLoaderModelOnly"),
    Kind("controlnet_", "a ControlNet", "ControlNetLoader"),
    Kind("quant_state.bitsandbytes__", "already packed by bitsandbytes", "a 16-bit file of the model"),
    Kind("double_stream_modulation_img.lin.weight", "a FLUX.2 transformer", "UNETLoader"),
    Kind("distilled_guidance_layer.", "a Chroma transformer", "UNETLoader"),
    FLUX,
    Kind("single_transformer_blocks.0.", "a FLUX transformer in diffusers' layout", "its BFL single file"),
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


def require_kind(checkpoint: Checkpoint, wanted: Kind) -> None:
    """Check that ``checkpoint`` is of the ``wanted`` kind.

    Raises:
        CheckpointError: it is another, and the message says which and what loads it.
    """
    found = identify(checkpoint.tensors)
    if found is wanted:
        return
    if found is None:
        raise CheckpointError(
            checkpoint.path,
            f"is not {wanted.description}: it has no tensor named {wanted.marker}.",
            f"Choose a file that holds {wanted.description}.",
        )
    raise CheckpointError(
        checkpoint.path,
        f"is {found.description}, not {wanted.description}.",
        f"Choose {wanted.description} here; for this file use {found.loader}.",
    )


def transformer_names(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Native names of the FLUX transformer's tensors, each with its full name in the file.

    An all-in-one checkpoint's encoders and VAE are left out.
    """
    prefix = next(p for p in TRANSFORMER_PREFIXES if p + FLUX.marker in checkpoint.tensors)
    return {name[len(prefix) :]: name for name in checkpoint.tensors if name.startswith(prefix)}
