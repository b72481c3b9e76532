"""LoRAs of every kind and key form, for the small FLUX of small_models: hidden size 256, two blocks of each type."""

from __future__ import annotations

import torch

HIDDEN, MLP = 256, 1024
RANK = 4


class Maker:
    """Random matrices of a seed, small enough to leave the model in its range."""

    def __init__(self, seed: int, size: float = 0.2):
        self.generator = torch.Generator().manual_seed(seed)
        self.size = size

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * self.size


def kohya(seed: int = 0) -> dict[str, torch.Tensor]:
    """sd-scripts: whole native layers, with an alpha."""
    m = Maker(seed)
    layers = {
        "double_blocks_0_img_attn_qkv": (3 * HIDDEN, HIDDEN),
        "double_blocks_1_txt_mlp_0": (MLP, HIDDEN),
        "single_blocks_0_linear1": (3 * HIDDEN + MLP, HIDDEN),
        "single_blocks_1_linear2": (HIDDEN, HIDDEN + MLP),
    }
    tensors = {}
    for layer, (rows, columns) in layers.items():
        tensors |= {
            f"lora_unet_{layer}.lora_down.weight": m(RANK, columns),
            f"lora_unet_{layer}.lora_up.weight": m(rows, RANK),
            f"lora_unet_{layer}.alpha": torch.tensor(2.0),
        }
    return tensors


def peft(seed: int = 1) -> dict[str, torch.Tensor]:
    """diffusers: q, k and v apart, which are slices of native layers."""
    m = Maker(seed)
    layers = {
        "transformer_blocks.0.attn.to_q": (HIDDEN, HIDDEN),
        "transformer_blocks.0.attn.to_v": (HIDDEN, HIDDEN),
        "transformer_blocks.0.attn.add_k_proj": (HIDDEN, HIDDEN),
        "transformer_blocks.1.ff.net.0.proj": (MLP, HIDDEN),
        "transformer_blocks.1.norm1.linear": (6 * HIDDEN, HIDDEN),
        "single_transformer_blocks.0.attn.to_k": (HIDDEN, HIDDEN),
        "single_transformer_blocks.0.proj_mlp": (MLP, HIDDEN),
        "single_transformer_blocks.1.proj_out": (HIDDEN, HIDDEN + MLP),
    }
    tensors = {}
    for layer, (rows, columns) in layers.items():
        tensors |= {
            f"transformer.{layer}.lora_A.weight": m(RANK, columns),
            f"transformer.{layer}.lora_B.weight": m(rows, RANK),
        }
    return tensors


def native(seed: int = 2) -> dict[str, torch.Tensor]:
    """Native names as trainers of single files write them."""
    m = Maker(seed)
    return {
        "diffusion_model.double_blocks.0.img_mlp.2.lora_A.weight": m(RANK, MLP),
        "diffusion_model.double_blocks.0.img_mlp.2.lora_B.weight": m(HIDDEN, RANK),
        "diffusion_model.single_blocks.1.modulation.lin.lora_down.weight": m(RANK, HIDDEN),
        "diffusion_model.single_blocks.1.modulation.lin.lora_up.weight": m(3 * HIDDEN, RANK),
    }


def dora(seed: int = 3) -> dict[str, torch.Tensor]:
    m = Maker(seed)
    return peft(seed) | {"transformer.transformer_blocks.1.ff.net.0.proj.dora_scale": m(MLP, 1).abs() + 0.5}


def loha(seed: int = 4) -> dict[str, torch.Tensor]:
    m = Maker(seed, 0.4)
    name = "lycoris_transformer_blocks_0_ff_net_0_proj"
    return {
        f"{name}.hada_w1_a": m(MLP, RANK),
        f"{name}.hada_w1_b": m(RANK, HIDDEN),
        f"{name}.hada_w2_a": m(MLP, RANK),
        f"{name}.hada_w2_b": m(RANK, HIDDEN),
        f"{name}.alpha": torch.tensor(4.0),
    }


def lokr(seed: int = 5) -> dict[str, torch.Tensor]:
    m = Maker(seed)
    return {
        "lycoris_transformer_blocks_0_attn_to_q.lokr_w1": m(4, 4),
        "lycoris_transformer_blocks_0_attn_to_q.lokr_w2": m(HIDDEN // 4, HIDDEN // 4),
        "lycoris_single_transformer_blocks_1_proj_mlp.lokr_w1": m(4, 4),
        "lycoris_single_transformer_blocks_1_proj_mlp.lokr_w2_a": m(MLP // 4, RANK),
        "lycoris_single_transformer_blocks_1_proj_mlp.lokr_w2_b": m(RANK, HIDDEN // 4),
    }


def full_difference(seed: int = 6) -> dict[str, torch.Tensor]:
    """Whole weights and biases, and a norm."""
    m = Maker(seed, 0.02)
    return {
        "diffusion_model.double_blocks.0.img_attn.qkv.diff": m(3 * HIDDEN, HIDDEN),
        "diffusion_model.double_blocks.0.img_attn.qkv.diff_b": m(3 * HIDDEN),
        "diffusion_model.single_blocks.0.linear2.diff_b": m(HIDDEN),
    }


def control(seed: int = 8) -> dict[str, torch.Tensor]:
    """As FLUX's control LoRAs: the input becomes twice as wide, for a second picture."""
    m = Maker(seed)
    return {
        "diffusion_model.img_in.lora_A.weight": m(4, 128),
        "diffusion_model.img_in.lora_B.weight": m(HIDDEN, 4),
        "diffusion_model.img_in.reshape_weight": torch.tensor([HIDDEN, 128]),
    }


def set_weight(seed: int = 7) -> dict[str, torch.Tensor]:
    m = Maker(seed, 0.2)
    return {"diffusion_model.double_blocks.0.img_attn.proj.set_weight": m(HIDDEN, HIDDEN)}


PLAIN = {"kohya": kohya, "peft": peft, "native": native}
OTHERS = {"dora": dora, "loha": loha, "lokr": lokr, "full difference": full_difference, "set": set_weight}
