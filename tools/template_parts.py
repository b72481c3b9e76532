"""What the graphs of the workflow templates are made of: nodes, groups of them, and the text-to-image graph."""

from __future__ import annotations

from comfy_client import Graph

LIGHTHOUSE = "a lighthouse on a cliff above a stormy sea, its beam through the rain, golden evening light"

TITLES = {
    "QuantFluxConfig": "Quantization Config",
    "QuantFluxLoadTransformer": "Load Quantized Transformer",
    "QuantFluxLoadT5": "Load Quantized T5",
    "QuantFluxSave": "Save Quantized Model",
    "QuantFluxCompile": "Compile",
    "QuantFluxPlan": "VRAM Plan",
    "QuantFluxQuality": "Quality Report",
    "QuantFluxMemoryReport": "Memory Report",
    "VAELoader": "Load VAE",
    "VAEDecode": "VAE Decode",
    "VAEDecodeTiled": "VAE Decode (Tiled)",
    "VAEEncode": "VAE Encode",
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "PreviewAny": "Preview as Text",
    "EmptySD3LatentImage": "Size",
    "RandomNoise": "Seed",
    "ConditioningZeroOut": "No negative prompt",
    "LoraLoader": "Load LoRA",
    "LoraLoaderModelOnly": "Load LoRA (model only)",
    "ControlNetLoader": "Load ControlNet Model",
    "ControlNetApplyAdvanced": "Apply ControlNet",
    "DifferentialDiffusion": "Differential Diffusion",
    "FluxKontextImageScale": "Scale for Kontext",
}


def node(class_type: str, title: str | None = None, **inputs: object) -> dict:
    """A node in API format; a link is `["<node id>", <output number>]`."""
    return {
        "class_type": class_type,
        "inputs": inputs,
        "_meta": {"title": title or TITLES.get(class_type, class_type)},
    }


def config(**changes: object) -> dict:
    """A Quantization Config with its defaults but for these inputs."""
    defaults = {
        "precision": "nf4", "compute_dtype": "auto", "double_quant": False, "blocksize": 64, "int8_threshold": 6.0,
        "skip_modules": "",
    }  # fmt: skip
    return node("QuantFluxConfig", **(defaults | changes))


def loaders(
    model: str = "flux1-dev.safetensors",
    t5: str = "t5xxl_fp16.safetensors",
    clip_l: str = "clip_l.safetensors",
    vae: str = "ae.safetensors",
    **precision: object,
) -> Graph:
    """A config, and the loaders of all that draws a picture."""
    return {
        "config": config(**precision),
        "transformer": node("QuantFluxLoadTransformer", model_name=model, config=["config", 0], hub_repo=""),
        "text_encoders": node(
            "QuantFluxLoadT5", t5_name=t5, clip_l_name=clip_l, config=["config", 0], hub_repo=""
        ),
        "vae": node("VAELoader", vae_name=vae),
    }  # fmt: skip


def prompted(text: str, guidance: float, size: int = 1024) -> Graph:
    """A prompt with FLUX's guidance, and the size of the picture."""
    return {
        "prompt": node("CLIPTextEncode", "Prompt", text=text, clip=["text_encoders", 0]),
        "guidance": node("FluxGuidance", guidance=guidance, conditioning=["prompt", 0]),
        "latent": node("EmptySD3LatentImage", width=size, height=size, batch_size=1),
    }


def saved(name: str) -> Graph:
    """The picture in the output folder."""
    return {
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", filename_prefix=f"quantflux/{name}", images=["decode", 0]),
    }


def text_to_image(
    name: str, text: str = LIGHTHOUSE, guidance: float = 3.5, steps: int = 20, cfg: float = 1.0, size: int = 1024,
    **files: object,
) -> Graph:  # fmt: skip
    """What the templates share: a prompt becomes a picture, by KSampler. FLUX's own guidance needs no negative one."""
    return {
        **loaders(**files),
        **prompted(text, guidance, size),
        "negative": node("ConditioningZeroOut", conditioning=["prompt", 0]),
        "sampler": node(
            "KSampler", seed=0, steps=steps, cfg=cfg, sampler_name="euler", scheduler="simple", denoise=1.0,
            model=["transformer", 0], positive=["guidance", 0], negative=["negative", 0], latent_image=["latent", 0],
        ),
        **saved(name),
    }  # fmt: skip
