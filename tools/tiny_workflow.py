"""The small FLUX of tests/assets/: where its files go in a host, and its text-to-image workflow."""

import json
from collections.abc import Mapping
from pathlib import Path

from comfy_client import Graph
from comfy_host import REPOSITORY

ASSETS = REPOSITORY / "tests" / "assets" / "tiny_flux"
WORKFLOWS = REPOSITORY / "workflows" / "api"

MODELS: dict[str, list[Path]] = {
    "diffusion_models": [ASSETS / "flux_tiny.safetensors"],
    "text_encoders": [ASSETS / "t5_tiny.safetensors", ASSETS / "clip_l_tiny.safetensors"],
    "vae": [ASSETS / "taef_tiny.safetensors"],
}


def load_workflow(name: str) -> Graph:
    """Return the API-format workflow `workflows/api/<name>.json`."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def text_to_image(
    prompt: str, seed: int = 0, transformer: Mapping[str, object] | None = None, **config: object
) -> Graph:
    """Return the small model's text-to-image workflow with this prompt and seed.

    `config` overrides inputs of the Quantization Config node, such as `precision="int8"`. With `transformer`, the
    transformer gets a node of its own, with these inputs overridden besides.
    """
    graph = load_workflow("tiny_flux_text_to_image")
    graph["prompt"]["inputs"]["text"] = prompt
    graph["sampler"]["inputs"]["seed"] = seed
    graph["config"]["inputs"].update(config)
    if transformer is not None:
        graph["transformer_config"] = {**graph["config"], "inputs": graph["config"]["inputs"] | dict(transformer)}
        graph["transformer"]["inputs"]["config"] = ["transformer_config", 0]
    return graph
