"""Small models of the host's other architectures, of random weights, and one prediction of each."""

from __future__ import annotations

import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.wan.model
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch

# what the conditioning of the small FLUX has, so that its text encoders serve SD3 too
CONTEXT, POOLED = 128, 64
WAN_CONTEXT = 4096  # fixed by the host


def sd3_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """An SD3 of two blocks under the names of Stability AI's files, which the host recognizes."""
    sizes = {"in_features": CONTEXT, "out_features": 128}
    with torch.device("meta"):
        model = comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper(
            input_size=None, patch_size=2, in_channels=16, depth=2, adm_in_channels=POOLED, num_patches=16 * 16,
            pos_embed_max_size=16, pos_embed_scaling_factor=None, qk_norm="rms",
            context_embedder_config={"target": "torch.nn.Linear", "params": sizes}, operations=comfy.ops.manual_cast,
        )  # fmt: skip
    return _random(model, dtype)


def wan_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A Wan 2.1 of two blocks, which the host recognizes: it writes films, here of one picture."""
    with torch.device("meta"):
        model = comfy.ldm.wan.model.WanModel(
            dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=WAN_CONTEXT, operations=comfy.ops.manual_cast
        )
    return _random(model, dtype)


def loaded_by_host(tensors: dict[str, torch.Tensor], **options) -> comfy.model_patcher.ModelPatcher:
    """A MODEL by the host's own loader, as UNETLoader makes it."""
    return comfy.sd.load_diffusion_model_state_dict(dict(tensors), model_options=options)


def scaled_float8_by_host(tensors: dict[str, torch.Tensor], layers: list[str]) -> comfy.model_patcher.ModelPatcher:
    """A MODEL by the host's own loader, the weights of whose ``layers`` it holds as fp8 with one scale each."""
    tensors = dict(tensors)
    operations = comfy.ops.mixed_precision_ops({name: {"format": "float8_e4m3fn"} for name in layers}, torch.float32)
    for name in layers:
        weight = tensors[f"{name}.weight"].float()
        scale = weight.abs().amax() / 448
        tensors |= {f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}
        if not hasattr(operations, "_layer_quant_config"):
            # newer hosts
            tensors[f"{name}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return loaded_by_host(tensors, custom_operations=operations)


def unet() -> comfy.model_patcher.ModelPatcher:
    """A U-Net of SDXL's kind, float32. The host recognizes only the true sizes, so it is not asked."""
    config = comfy.supported_models.SDXL(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
            "transformer_depth_middle": 1, "use_linear_in_transformer": True, "use_spatial_transformer": True,
            "context_dim": CONTEXT, "num_classes": "sequential", "adm_in_channels": POOLED, "legacy": False,
            "use_checkpoint": False,
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    model.diffusion_model.load_state_dict(_random(model.diffusion_model, torch.float32))
    return comfy.model_patcher.ModelPatcher(model, memory.get_torch_device(), memory.unet_offload_device())


def denoised(patcher: comfy.model_patcher.ModelPatcher, load: bool = True) -> torch.Tensor:
    """One prediction of the host's model, as its samplers ask for it, with the patcher's wrappers about it.

    Args:
        load: ask the host to load the whole model; False takes its layers from where they are.
    """
    if load:
        memory.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(3)
    wan = isinstance(patcher.model, comfy.model_base.WAN21)
    channels = patcher.model.latent_format.latent_channels
    x = torch.randn((1, channels, 1, 8, 8) if wan else (1, channels, 8, 8), generator=generator)
    context = torch.randn(1, 10, WAN_CONTEXT if wan else CONTEXT, generator=generator)
    device = patcher.load_device
    conditioning = {} if wan else {"y": torch.randn(1, POOLED, generator=generator).to(device)}
    sigma = torch.tensor([0.5], device=device)
    conditioning["transformer_options"] = {"wrappers": patcher.wrappers}
    return patcher.model.apply_model(x.to(device), sigma, c_crossattn=context.to(device), **conditioning).float().cpu()


def _random(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights that keep the size of what they multiply, small biases, and norms about one."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in model.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        if name.endswith(".weight") and tensor.dim() == 1:
            values = 1 + 0.1 * values
        else:
            values *= tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.1
        tensors[name] = values.to(dtype)
    return tensors


# name → a function that makes a new MODEL, and of those that the host recognizes the tensors
MAKERS = {
    "SD3": lambda: loaded_by_host(sd3_tensors()),
    "Wan": lambda: loaded_by_host(wan_tensors()),
    "U-Net": unet,
}
DITS = {"SD3": sd3_tensors, "Wan": wan_tensors}
