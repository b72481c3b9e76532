"""The two naming schemes of FLUX weights and the exact map between them.

*Native* names are those of Black Forest Labs' single files and of the host's ``Flux`` class; *diffusers*
names are those of ``FluxTransformer2DModel``. A native module is made of one or more diffusers modules whose
output rows are stacked in the listed order, weights and biases alike. ``{}`` stands for a block number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# native module -> diffusers modules whose rows it stacks
LINEARS: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "double_blocks.{}.img_attn.qkv": (
        "transformer_blocks.{}.attn.to_q",
        "transformer_blocks.{}.attn.to_k",
        "transformer_blocks.{}.attn.to_v",
    ),
    "double_blocks.{}.txt_attn.qkv": (
        "transformer_blocks.{}.attn.add_q_proj",
        "transformer_blocks.{}.attn.add_k_proj",
        "transformer_blocks.{}.attn.add_v_proj",
    ),
    "double_blocks.{}.img_attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "double_blocks.{}.img_mlp.0": ("transformer_blocks.{}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": ("transformer_blocks.{}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": ("transformer_blocks.{}.ff_context.net.2",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
    "single_blocks.{}.linear1": (
        "single_transformer_blocks.{}.attn.to_q",
        "single_transformer_blocks.{}.attn.to_k",
        "single_transformer_blocks.{}.attn.to_v",
        "single_transformer_blocks.{}.proj_mlp",
    ),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}

# native tensor -> diffusers tensor
NORMS: dict[str, str] = {
    "double_blocks.{}.img_attn.norm.query_norm.scale": "transformer_blocks.{}.attn.norm_q.weight",
    "double_blocks.{}.img_attn.norm.key_norm.scale": "transformer_blocks.{}.attn.norm_k.weight",
    "double_blocks.{}.txt_attn.norm.query_norm.scale": "transformer_blocks.{}.attn.norm_added_q.weight",
    "double_blocks.{}.txt_attn.norm.key_norm.scale": "transformer_blocks.{}.attn.norm_added_k.weight",
    "single_blocks.{}.norm.query_norm.scale": "single_transformer_blocks.{}.attn.norm_q.weight",
    "single_blocks.{}.norm.key_norm.scale": "single_transformer_blocks.{}.attn.norm_k.weight",
}

# diffusers stores (scale, shift), the native layer (shift, scale): the row halves trade places
SWAPPED_HALVES = frozenset({"final_layer.adaLN_modulation.1"})

_BLOCK_NUMBER = re.compile(r"(?<=blocks\.)\d+")


def diffusers_parts(native_module: str) -> tuple[str, ...]:
    """The diffusers modules that make up ``native_module``, in row order; ``()`` for an unknown name.

    >>> diffusers_parts("double_blocks.7.img_attn.proj")
    ('transformer_blocks.7.attn.to_out.0',)
    """
    number = _BLOCK_NUMBER.search(native_module)
    parts = LINEARS.get(_BLOCK_NUMBER.sub("{}", native_module), ())
    return tuple(part.format(number.group()) if number else part for part in parts)


def native_names(templates: Iterable[str], double_blocks: int, single_blocks: int) -> list[str]:
    """``templates`` (keys of :data:`LINEARS` or :data:`NORMS`) spelled out for every block."""
    counts = {"double_blocks": double_blocks, "single_blocks": single_blocks}
    names = []
    for template in templates:
        if "{}" in template:
            names += [template.format(i) for i in range(counts[template.split(".", 1)[0]])]
        else:
            names.append(template)
    return names
