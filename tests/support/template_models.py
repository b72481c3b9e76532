"""Small models that stand in for the files of the templates in workflows/, under the names that the templates use.

They are the small FLUX, and what is made of it so that it means something: a Fill model that inpaints; a FLUX as wide
as the host's ControlNets take for granted, which draws the same pictures; and a ControlNet that was not trained but
written down: it shows FLUX the control picture through FLUX's own input layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import loras
import torch
from comfy_client import Graph
from comfy_host import ComfyHost
from PIL import Image, ImageDraw
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.export import provenance_of, save_diffusers_folder
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file, save_file
from stock_models import FLUX, T5, union_controlnet_shapes
from tiny_workflow import ASSETS, load_workflow

HUB_REPO = "diffusers/FLUX.1-dev-bnb-4bit"
COPIES = 12  # of hidden size 256 with 2 heads, to make the host's 3072 with 24
WIDE_FLUX = "wide_flux1-dev.safetensors"
# number of stacked modules of hidden size, by the end of a layer's name; rows after those are not of hidden size
STACKED = {"mod.lin": 6, "modulation.lin": 3, "adaLN_modulation.1": 2, "qkv": 3, "linear1": 3, "mlp.0": 0,
           "final_layer.linear": 0}  # fmt: skip
OUTSIDE = ("img_in", "txt_in", "in_layer", "mlp.2")  # layers whose inputs are not of hidden size


def small(name: str, prompt: str, steps: int) -> Graph:
    """The API-format template `name` at 128×128, with a prompt that the small model knows and as few steps.

    Besides, Kontext's picture is made smaller than Kontext wants it, the ControlNet's FLUX is the wide one, and
    compiling is by eager, since inductor takes a minute on a CPU.
    """
    graph = load_workflow(name)
    changes = {"width": 128, "height": 128, "steps": steps, "text": prompt, "backend": "eager"}
    for node in graph.values():
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    if "scale" in graph:
        shrunk = {"image": ["scale", 0], "upscale_method": "area", "scale_by": 0.125}
        graph["shrink"] = {"class_type": "ImageScaleBy", "inputs": shrunk}
        graph["encode"]["inputs"]["pixels"] = ["shrink", 0]
    if "controlnet" in graph:
        graph["transformer"]["inputs"]["model_name"] = WIDE_FLUX
    return graph


def add_stand_ins(host: ComfyHost, folder: Path) -> None:
    """Put all small files into the host's model folders, and a picture with a mask into its input folder."""
    for file, names in {
        FLUX: ["flux1-dev.safetensors", "flux1-kontext-dev.safetensors"],
        T5: ["t5xxl_fp16.safetensors"],
        ASSETS / "clip_l_tiny.safetensors": ["clip_l.safetensors"],
        ASSETS / "taef_tiny.safetensors": ["ae.safetensors"],
    }.items():
        kind = "diffusion_models" if file == FLUX else "vae" if "taef" in file.name else "text_encoders"
        for name in names:
            host.add_model(kind, file, name)
    add(host, folder, "diffusion_models", "flux1-fill-dev.safetensors", fill_model())
    for seed, name in enumerate(("FLUX-dev-lora-add_details.safetensors", "Hyper-FLUX.1-dev-8steps-lora.safetensors")):
        add(host, folder, "loras", name, loras.peft(seed) if seed else loras.kohya(seed))
    (host.base / "input").mkdir(exist_ok=True)
    example_picture().save(host.base / "input" / "example.png")


def add_controlnet(host: ComfyHost, folder: str | Path, whole: bool = False) -> None:
    """Add the wide FLUX, with all its blocks or with one of each kind, and the ControlNet: 1.2 GB, or 2.1."""
    folder = Path(folder)
    add(host, folder, "diffusion_models", WIDE_FLUX, wide_flux(None if whole else 1))
    add(host, folder, "controlnet", "diffusion_pytorch_model.safetensors", written_controlnet())


def add(host: ComfyHost, folder: Path, kind: str, name: str, tensors: dict[str, torch.Tensor]) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    host.add_model(kind, folder / name)


def example_picture(size: int = 128) -> Image.Image:
    """A blue square on white, transparent, that is masked, in its lower right half."""
    picture = Image.new("RGBA", (size, size), (247, 247, 247, 255))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([size // 8, size // 8, size // 2, size // 2], (38, 84, 217, 255))
    draw.rectangle([size // 2, size // 2, size, size], (247, 247, 247, 0))
    return picture


def packed_pipeline() -> dict[str, bytes]:
    """The small FLUX and T5 at NF4 as a pipeline of diffusers, file by file."""
    files = {"model_index.json": b'{"_class_name": "FluxPipeline"}'}
    with TemporaryDirectory(prefix="packed-pipeline-") as temporary:
        for path, find, name in ((FLUX, flux_source, "transformer"), (T5, t5_source, "text_encoder_2")):
            # transformers leaves T5's wo at 16 bit
            source = find(open_checkpoint(path), QuantConfig("nf4", skip_modules=("wo",) if path == T5 else ()))
            save_diffusers_folder(Path(temporary) / name, load(source), provenance_of(source))
        for file in Path(temporary).rglob("*.*"):
            files[file.relative_to(temporary).as_posix()] = file.read_bytes()
    return files


def fill_model() -> dict[str, torch.Tensor]:
    """The small FLUX with Fill's input channels, of which it looks at its own only; the noise mask keeps the rest."""
    tensors = load_file(FLUX)
    weight = tensors["img_in.weight"]
    tensors["img_in.weight"] = torch.cat([weight, weight.new_zeros(len(weight), 384 - weight.shape[1])], dim=1)
    return tensors


def wide_flux(blocks: int | None = None) -> dict[str, torch.Tensor]:
    """The small FLUX with each hidden channel twelve times over: the same function, at hidden size 3072.

    Layers write all copies and read the first; LayerNorm gives the same for one copy and for twelve. Only the first
    `blocks` of each kind are kept, if it is given.
    """
    wide = {}
    for name, tensor in load_file(FLUX).items():
        number = re.search(r"_blocks\.(\d+)\.", name)
        if blocks is None or number is None or int(number[1]) < blocks:
            wide[name] = tensor if name.endswith(".scale") else _widened(name.rpartition(".")[0], tensor)
    return wide


def _widened(module: str, tensor: torch.Tensor, hidden: int = 256) -> torch.Tensor:
    stacked = next((count for end, count in STACKED.items() if module.endswith(end)), 1)
    parts = [part.repeat(COPIES, *[1] * (tensor.dim() - 1)) for part in tensor[: stacked * hidden].split(hidden)]
    tensor = torch.cat([*(parts if stacked else []), tensor[stacked * hidden :]])
    if tensor.dim() == 1 or module.endswith(OUTSIDE):
        return tensor
    unread = tensor.new_zeros(len(tensor), (COPIES - 1) * hidden)
    return torch.cat([tensor[:, :hidden], unread, tensor[:, hidden:]], dim=1)


def written_controlnet(strength: float = 1.0) -> dict[str, torch.Tensor]:
    """A union ControlNet of one block that adds the control picture, as FLUX's input layer sees it, to every block.

    Its own block is all zeros and hands on what it gets. All modes do the same.
    """
    shapes = union_controlnet_shapes()
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    weight = load_file(FLUX)["img_in.weight"]
    tensors["controlnet_x_embedder.weight"] = (strength * weight).repeat(COPIES, 1).to(torch.bfloat16)
    tensors["controlnet_blocks.0.weight"] = torch.eye(COPIES * len(weight), dtype=torch.bfloat16)
    for name in _norms(tensors):
        tensors[name] = torch.ones_like(tensors[name])
    return tensors


def _norms(names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(r"norm_(added_)?[qk]\.weight$", name)]
