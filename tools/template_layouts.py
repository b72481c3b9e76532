"""Where the nodes of each template are on the canvas: groups from left to right, in each its columns, top to bottom."""

from __future__ import annotations

Group = tuple[str, list[list[str]]]

MODELS: Group = ("Models", [["config", "vae"], ["transformer", "text_encoders"]])
PROMPT: Group = ("Prompt and size", [["prompt", "guidance", "negative", "latent"]])
PICTURE: Group = ("Picture", [["sampler", "decode"], ["save"]])
WITHOUT_SIZE: Group = ("Prompt", [["prompt", "guidance", "negative"]])
TEXT_TO_IMAGE = [MODELS, PROMPT, PICTURE]

LAYOUTS: dict[str, list[Group]] = {
    "tiny_flux_text_to_image": TEXT_TO_IMAGE,
    "flux_dev_text_to_image": [
        MODELS,
        ("Prompt and size", [["prompt", "guidance", "latent"]]),
        ("Sampling", [["shift", "guider", "noise", "sampler_select", "scheduler"]]),
        PICTURE,
    ],
    "flux_dev_8bit": TEXT_TO_IMAGE,
    "flux_dev_low_vram": TEXT_TO_IMAGE,
    "flux_dev_lora_stack": [MODELS, ("LoRAs", [["lora", "second_lora"]]), PROMPT, PICTURE],
    "flux_dev_controlnet": [
        MODELS,
        PROMPT,
        ("Control", [["picture", "edges"], ["seen", "controlnet"], ["type", "apply"]]),
        PICTURE,
    ],
    "flux_kontext_edit": [
        MODELS,
        ("Picture to edit", [["picture", "scale", "encode"]]),
        ("What is to change", [["prompt", "reference", "guidance", "negative"]]),
        PICTURE,
    ],
    "flux_fill_inpaint": [
        MODELS,
        WITHOUT_SIZE,
        ("Picture and mask", [["picture"], ["inpaint", "differential"]]),
        PICTURE,
    ],
    "flux_dev_from_hub": [("Models", [["transformer", "text_encoders", "vae"]]), PROMPT, PICTURE],
    "flux_dev_save_packed": [("Models", [["config"], ["transformer", "text_encoders"]]), ("Files", [["save_model"]])],
    "flux_dev_plan_and_quality": [
        ("Models", [["config", "reference_config", "vae"], ["transformer", "reference", "text_encoders"]]),
        ("1 · VRAM Plan: before anything is loaded", [["plan", "plan_text"], ["plan_chart"]]),
        (
            "2 · Quality Report: how far from 16 bit",
            [["prompt", "guidance", "latent"], ["quality", "quality_text"], ["quality_chart"]],
        ),
        ("3 · Memory Report: what is loaded, and where", [["memory", "memory_text"], ["memory_chart"]]),
    ],
    "flux_dev_compile": [MODELS, ("Compile", [["compile"]]), PROMPT, PICTURE],
}
