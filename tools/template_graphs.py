"""The graphs of the workflow templates, by node ids that say what a node does.

What they share is `text_to_image`; each template changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from comfy_client import Graph
from template_parts import LIGHTHOUSE, config, loaders, node, prompted, saved, text_to_image

PICTURE = "example.png"  # comes with ComfyUI, in its input folder


def tiny() -> Graph:
    graph = text_to_image(
        "tiny_flux", "a red circle", cfg=2.0, size=128,
        model="flux_tiny.safetensors", t5="t5_tiny.safetensors", clip_l="clip_l_tiny.safetensors",
        vae="taef_tiny.safetensors",
    )  # fmt: skip
    graph["negative"] = node("CLIPTextEncode", "Negative prompt", text="", clip=["text_encoders", 0])
    return graph


def nf4() -> Graph:
    """By the nodes of custom sampling, with FLUX's shift of the schedule as a node of its own."""
    return {
        **loaders(),
        **prompted(LIGHTHOUSE, 3.5),
        "shift": node(
            "ModelSamplingFlux", model=["transformer", 0], max_shift=1.15, base_shift=0.5, width=1024, height=1024
        ),
        "guider": node("BasicGuider", model=["shift", 0], conditioning=["guidance", 0]),
        "noise": node("RandomNoise", noise_seed=0),
        "sampler_select": node("KSamplerSelect", sampler_name="euler"),
        "scheduler": node("BasicScheduler", model=["shift", 0], scheduler="simple", steps=20, denoise=1.0),
        "sampler": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler_select", 0],
            sigmas=["scheduler", 0], latent_image=["latent", 0],
        ),
        **saved("flux_dev"),
    }  # fmt: skip


def int8() -> Graph:
    return text_to_image("flux_dev_8bit", precision="int8")


def low_vram() -> Graph:
    graph = text_to_image("flux_dev_low_vram", double_quant=True)
    graph["decode"] = node(
        "VAEDecodeTiled", samples=["sampler", 0], vae=["vae", 0], tile_size=512, overlap=64, temporal_size=64,
        temporal_overlap=8,
    )  # fmt: skip
    return graph


def lora_stack() -> Graph:
    graph = text_to_image("flux_dev_lora_stack", steps=8)
    graph["lora"] = node(
        "LoraLoader", model=["transformer", 0], clip=["text_encoders", 0],
        lora_name="FLUX-dev-lora-add_details.safetensors", strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    graph["second_lora"] = node(
        "LoraLoaderModelOnly", model=["lora", 0],
        lora_name="Hyper-FLUX.1-dev-8steps-lora.safetensors", strength_model=0.125,
    )  # fmt: skip
    graph["prompt"]["inputs"]["clip"] = ["lora", 1]
    graph["sampler"]["inputs"]["model"] = ["second_lora", 0]
    return graph


def controlnet() -> Graph:
    graph = text_to_image("flux_dev_controlnet")
    graph |= {
        "picture": node("LoadImage", image=PICTURE),
        "edges": node("Canny", image=["picture", 0], low_threshold=0.1, high_threshold=0.3),
        "seen": node("PreviewImage", "What the ControlNet sees", images=["edges", 0]),
        "controlnet": node("ControlNetLoader", control_net_name="diffusion_pytorch_model.safetensors"),
        # the file's own number of canny, 0, which the host calls openpose
        "type": node("SetUnionControlNetType", control_net=["controlnet", 0], type="openpose"),
        "apply": node(
            "ControlNetApplyAdvanced", positive=["guidance", 0], negative=["negative", 0], control_net=["type", 0],
            image=["edges", 0], vae=["vae", 0], strength=0.4, start_percent=0.0, end_percent=0.8,
        ),
    }  # fmt: skip
    graph["sampler"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return graph


def kontext() -> Graph:
    graph = text_to_image(
        "flux_kontext_edit",
        "make it a winter evening, with snow on the ground",
        2.5,
        model="flux1-kontext-dev.safetensors",
    )
    del graph["latent"]
    graph |= {
        "picture": node("LoadImage", image=PICTURE),
        "scale": node("FluxKontextImageScale", image=["picture", 0]),
        "encode": node("VAEEncode", pixels=["scale", 0], vae=["vae", 0]),
        "reference": node("ReferenceLatent", conditioning=["prompt", 0], latent=["encode", 0]),
    }
    graph["guidance"]["inputs"]["conditioning"] = ["reference", 0]
    graph["sampler"]["inputs"]["latent_image"] = ["encode", 0]
    return graph


def fill() -> Graph:
    graph = text_to_image(
        "flux_fill_inpaint", "a vase of sunflowers", guidance=30.0, model="flux1-fill-dev.safetensors"
    )
    del graph["latent"]
    graph |= {
        "picture": node("LoadImage", image=PICTURE),
        "inpaint": node(
            "InpaintModelConditioning", positive=["guidance", 0], negative=["negative", 0], vae=["vae", 0],
            pixels=["picture", 0], mask=["picture", 1], noise_mask=True,
        ),
        "differential": node("DifferentialDiffusion", model=["transformer", 0], strength=1.0),
    }  # fmt: skip
    graph["sampler"]["inputs"] |= {
        "model": ["differential", 0], "positive": ["inpaint", 0], "negative": ["inpaint", 1],
        "latent_image": ["inpaint", 2],
    }  # fmt: skip
    return graph


def from_hub() -> Graph:
    graph = text_to_image("flux_dev_from_hub", model="(from hub_repo)", t5="(from hub_repo)")
    del graph["config"]
    for loader in ("transformer", "text_encoders"):
        del graph[loader]["inputs"]["config"]
        graph[loader]["inputs"]["hub_repo"] = "diffusers/FLUX.1-dev-bnb-4bit"
    return graph


def save_packed() -> Graph:
    graph = loaders()
    del graph["vae"]
    graph["save_model"] = node(
        "QuantFluxSave", model=["transformer", 0], clip=["text_encoders", 0], filename_prefix="flux1-dev-nf4",
        format="single file",
    )  # fmt: skip
    return graph


def plan_and_quality() -> Graph:
    graph = loaders() | prompted(LIGHTHOUSE, 3.5)
    graph |= {
        "plan": node(
            "QuantFluxPlan", model_name="flux1-dev.safetensors", t5_name="t5xxl_fp16.safetensors", width=1024,
            height=1024, batch_size=1, config=["config", 0],
        ),
        "reference_config": node("QuantFluxConfig", "16 bit, for the reference", **config(precision="none")["inputs"]),
        "reference": node(
            "QuantFluxLoadTransformer", "The reference", model_name="flux1-dev.safetensors",
            config=["reference_config", 0], hub_repo="",
        ),
        "quality": node(
            "QuantFluxQuality", reference=["reference", 0], model=["transformer", 0], positive=["guidance", 0],
            latent_image=["latent", 0], steps=20, seed=0, cfg=1.0, scheduler="simple", layer_outputs=False,
        ),
        "memory": node(
            "QuantFluxMemoryReport", model=["transformer", 0], clip=["text_encoders", 0], vae=["vae", 0]
        ),
    }  # fmt: skip
    for report in ("plan", "quality", "memory"):
        graph[f"{report}_text"] = node("PreviewAny", source=[report, 0])
        graph[f"{report}_chart"] = node("PreviewImage", images=[report, 1])
    return graph


def compiled() -> Graph:
    graph = text_to_image("flux_dev_compile")
    graph["compile"] = node(
        "QuantFluxCompile", model=["transformer", 0], backend="inductor", mode="default", regional=True,
        fullgraph=False, dynamic="auto",
    )  # fmt: skip
    graph["sampler"]["inputs"]["model"] = ["compile", 0]
    return graph


GRAPHS: dict[str, Callable[[], Graph]] = {
    "tiny_flux_text_to_image": tiny,
    "flux_dev_text_to_image": nf4,
    "flux_dev_8bit": int8,
    "flux_dev_low_vram": low_vram,
    "flux_dev_lora_stack": lora_stack,
    "flux_dev_controlnet": controlnet,
    "flux_kontext_edit": kontext,
    "flux_fill_inpaint": fill,
    "flux_dev_from_hub": from_hub,
    "flux_dev_save_packed": save_packed,
    "flux_dev_plan_and_quality": plan_and_quality,
    "flux_dev_compile": compiled,
}


def graphs() -> Iterator[tuple[str, Graph]]:
    """Name and graph of every template."""
    for name, make in GRAPHS.items():
        yield name, make()
