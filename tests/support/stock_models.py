"""Small models for the stock nodes, and the graphs that are drawn with them in a real host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from comfy_client import Graph
from comfy_host import has_accelerator
from loras import Maker
from PIL import Image
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.layouts import dequantize, is_packed
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file, save_file
from tiny_workflow import ASSETS, text_to_image

FLUX, T5 = ASSETS / "flux_tiny.safetensors", ASSETS / "t5_tiny.safetensors"
# On a CPU both compute in float32, and only the order of sums differs: seen are 0 and, with LoRAs, 1e-5. On a GPU they
# compute in bfloat16, of 8 bits: 0.4 % at each rounding. The original weights are further away than either (tested).
CLOSE = 0.02 if has_accelerator() else 1e-3
# What a node has to do to the latent at least, relative to it: more than any rounding does.
EFFECT = 0.03

# What FLUX's hosts before 0.18 take for granted of a ControlNet: 24 heads of 128. So the FLUX under it has them too;
# all else is as small as it can be.
WIDE = FluxConfig(
    in_channels=64, out_channels=64, hidden_size=3072, num_heads=24, mlp_size=128, context_in_dim=128, vec_in_dim=64,
    depth=1, depth_single_blocks=1, guidance_embed=True,
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """What a graph drew: its pictures, and the latent that they were decoded from."""

    pictures: list[Image.Image]
    latent: torch.Tensor

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [picture.size for picture in self.pictures]

    def error(self, other: Drawing) -> float:
        """How far this latent is from the other, relative to it."""
        return ((self.latent - other.latent).norm() / other.latent.norm()).item()


class Studio:
    """Draws graphs in a host, each with packed weights and, in the same prompt, with plain ones of the same values.

    The transformer has a twin with plain weights; with `twin_text`, T5 has one too. Nothing is drawn a second time.
    """

    def __init__(self, host, folder: Path, twin_text: bool = False):
        self.host = host
        self.folder = folder
        self._twins = {"transformer": "model_name"} | ({"text_encoders": "t5_name"} if twin_text else {})
        self._drawn: dict[str, tuple[Drawing, Drawing]] = {}
        self.add_twin(FLUX)
        if twin_text:
            self.add_twin(T5, "text_encoders", t5_source)

    def add(self, folder: str, name: str, tensors: dict[str, torch.Tensor]) -> str:
        """Put a file into one of the host's model folders, and return the name that its nodes list."""
        path = self.folder / name
        save_file(tensors, path)
        self.host.add_model(folder, path)
        return name

    def add_twin(self, path: Path, folder="diffusion_models", find=flux_source, dtype=torch.float32) -> None:
        """Add, as `plain_<name>`, a model whose plain weights have the values that NF4 makes of this one's."""
        packed = load(find(open_checkpoint(path), QuantConfig("nf4")))
        assert any(is_packed(tensor) for tensor in packed.values())
        plain = {name: dequantize(tensor, dtype).contiguous() for name, tensor in packed.items()}
        self.add(folder, f"plain_{path.name}", plain)

    def add_flux(self, name: str, tensors: dict[str, torch.Tensor], twin_dtype=torch.float32) -> str:
        """Add a FLUX and its twin."""
        self.add("diffusion_models", name, tensors)
        self.add_twin(self.folder / name, dtype=twin_dtype)
        return name

    def draw(self, graph: Graph) -> Drawing:
        return self._draw_both(graph)[0]

    def draw_plain(self, graph: Graph) -> Drawing:
        return self._draw_both(graph)[1]

    def assert_effect(self, graph: Graph, without: Graph, *, size=(64, 64), least: float = EFFECT) -> Drawing:
        """The graph draws a picture of this size, and another one than the graph `without`."""
        drawing = self.draw(graph)
        assert drawing.sizes == [size]
        assert drawing.latent.isfinite().all()
        effect = drawing.error(self.draw(without))
        assert effect > least, f"effect {effect:.1e}"
        return drawing

    def assert_as_plain(self, graph: Graph, bound: float = CLOSE) -> None:
        """The graph draws what it draws with plain weights that have the packed ones' values."""
        error = self.draw(graph).error(self.draw_plain(graph))
        assert error < bound, f"error {error:.1e}"

    def _draw_both(self, graph: Graph) -> tuple[Drawing, Drawing]:
        key = json.dumps(graph, sort_keys=True)
        if key not in self._drawn:
            both = _prefixed("packed ", graph) | _prefixed("plain ", self._with_plain_weights(graph))
            outputs = self.host.client.run(both).outputs
            packed, plain = (self._drawing(outputs, prefix) for prefix in ("packed ", "plain "))
            self._drawn[key] = packed, plain
        return self._drawn[key]

    def _with_plain_weights(self, graph: Graph) -> Graph:
        graph = json.loads(json.dumps(graph))
        graph["plain config"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | {"precision": "none"}))
        for node_id, widget in self._twins.items():
            inputs = graph[node_id]["inputs"]
            inputs |= {widget: f"plain_{inputs[widget]}", "config": ["plain config", 0]}
        return graph

    def _drawing(self, outputs: dict, prefix: str) -> Drawing:
        def files(node_id, kind):
            return [self.host.base / "output" / f["subfolder"] / f["filename"] for f in outputs[prefix + node_id][kind]]

        (latent,) = files("keep", "latents")
        pictures = [Image.open(file).convert("RGB") for file in files("save", "images")]
        return Drawing(pictures, load_file(latent)["latent_tensor"])


# graphs


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def small_graph(model: str = FLUX.name, *, width: int = 64, height: int = 64, **sampler: object) -> Graph:
    """The small model's workflow at NF4, 64×64 in 3 steps without a negative prompt."""
    graph = text_to_image("a large red circle on a white background", seed=5, precision="nf4")
    graph["transformer"]["inputs"]["model_name"] = model
    graph["latent"]["inputs"].update(width=width, height=height)
    graph["sampler"]["inputs"].update({"steps": 3, "cfg": 1.0} | sampler)
    return graph


def _prefixed(prefix: str, graph: Graph) -> Graph:
    """The graph, keeping its latent too, with this before every node's id."""
    graph = graph | {"keep": node("SaveLatent", samples=graph["decode"]["inputs"]["samples"], filename_prefix="stock")}
    return {
        prefix + node_id: {
            "class_type": one["class_type"],
            "inputs": {
                name: [prefix + value[0], value[1]] if isinstance(value, list) else value
                for name, value in one["inputs"].items()
            },
        }
        for node_id, one in graph.items()
    }


def splice(graph: Graph, where: str, wire: str, class_type: str, *, into: str | None = None, **inputs: object) -> str:
    """Put a new node into the wire that ends at the input `wire` of the node `where`, and return its id.

    The wire goes on into the new node's input `into`, by default one of the same name.
    """
    name = f"{class_type} {len(graph)}"
    graph[name] = node(class_type, **{into or wire: graph[where]["inputs"][wire]}, **inputs)
    graph[where]["inputs"][wire] = [name, 0]
    return name


def add_picture(graph: Graph, size: int = 64) -> str:
    """Add a blue square on grey as an image, and return its node's id."""
    graph["grey"] = node("EmptyImage", width=size, height=size, batch_size=1, color=0xA0A0A0)
    graph["blue"] = node("EmptyImage", width=size // 2, height=size // 2, batch_size=1, color=0x2030E0)
    graph["picture"] = node(
        "ImageCompositeMasked", destination=["grey", 0], source=["blue", 0], x=size // 4, y=size // 4,
        resize_source=False,
    )  # fmt: skip
    return "picture"


def add_mask(graph: Graph, size: int = 64) -> str:
    """Add a mask of the right half, and return its node's id."""
    graph["none"] = node("SolidMask", value=0.0, width=size, height=size)
    graph["half"] = node("SolidMask", value=1.0, width=size // 2, height=size)
    graph["mask"] = node(
        "MaskComposite", destination=["none", 0], source=["half", 0], x=size // 2, y=0, operation="add"
    )
    return "mask"


# models


def widened_flux(in_channels: int) -> dict[str, torch.Tensor]:
    """The small FLUX with more input channels, as Fill (384), Canny and Depth (128) have them."""
    tensors = load_file(FLUX)
    base = tensors["img_in.weight"]
    more = Maker(1, base.float().std().item())(base.shape[0], in_channels - base.shape[1])
    tensors["img_in.weight"] = torch.cat([base, more.to(base.dtype)], dim=1)
    return tensors


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Random bfloat16 weights that keep the size of what they multiply, small biases, and norms of one.

    Made from one long row of random numbers: as many as there are weights would take seconds.
    """
    pool = torch.randn(60_000_011, generator=torch.Generator().manual_seed(seed))
    start, tensors = 0, {}
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        if start + count > len(pool):
            start = (start + count) % 9973
        values = pool[start : start + count].reshape(shape)
        start += count
        scale = shape[1] ** -0.5 if len(shape) == 2 else 0.01
        is_norm = name.endswith((".scale", "norm_q.weight", "norm_k.weight", "added_q.weight", "added_k.weight"))
        tensors[name] = (torch.ones(shape) if is_norm else values * scale).to(torch.bfloat16)
    return tensors


def wide_flux() -> dict[str, torch.Tensor]:
    return random_tensors(WIDE.tensor_shapes(), seed=1)


def union_controlnet() -> dict[str, torch.Tensor]:
    return random_tensors(union_controlnet_shapes(), seed=2)


def union_controlnet_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a union ControlNet for the wide FLUX: those of diffusers' class, as InstantX's has them."""
    with torch.device("meta"):
        model = diffusers.FluxControlNetModel(
            in_channels=64, num_layers=1, num_single_layers=0, attention_head_dim=128, num_attention_heads=24,
            joint_attention_dim=128, pooled_projection_dim=64, guidance_embeds=True, num_mode=10,
        )  # fmt: skip
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
