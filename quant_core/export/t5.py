"""T5 for transformers: the names are the same, and ``wo`` is always at 16 bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..layouts import is_packed
from ..t5 import BUCKETS, T5Config
from .contents import FolderContents
from .tensors import TensorSpec, group, unpacked

logger = logging.getLogger(__name__)


def t5_contents(tensors: Mapping[str, torch.Tensor], model: T5Config) -> FolderContents:
    """A T5 encoder as transformers' ``T5EncoderModel`` loads it.

    transformers never packs ``wo``, so a packed one is dequantized, and the log says so.

    Args:
        tensors: by transformers' names.
    """
    modules = model.linear_shapes()
    unpack = {f"{module}.weight" for module in modules if _is_wo(module) and is_packed(tensors[f"{module}.weight"])}
    if unpack:
        logger.warning(
            "Saved at 16 bit with their exact values, because transformers reads no packed ones: %s wo layers of T5.",
            len(unpack),
        )
    groups = [
        group(name, partial(unpacked, tensor), TensorSpec(tensor.dtype, tuple(tensor.shape)))
        if name in unpack
        else group(name, lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]
    plain = [m for m in modules if not _is_wo(m) and not is_packed(tensors[f"{m}.weight"])]
    config = t5_config(model, tensors["shared.weight"].dtype)
    return FolderContents(config, "model", groups, ["wo", *plain], is_transformers=True)


def t5_config(model: T5Config, dtype: torch.dtype) -> dict[str, Any]:
    """``config.json`` of transformers' ``T5EncoderModel``, a T5 v1.1.

    Args:
        dtype: of the tensors that are not packed.
    """
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": model.d_model,
        "d_kv": model.d_kv,
        "d_ff": model.d_ff,
        "num_heads": model.num_heads,
        "num_layers": model.num_layers,
        "num_decoder_layers": model.num_layers,
        "vocab_size": model.vocab_size,
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": 128,
        "is_encoder_decoder": True,
        "use_cache": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _is_wo(module: str) -> bool:
    return module.rpartition(".")[2] == "wo"
