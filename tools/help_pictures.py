"""Makes the pictures of nodes on the help pages: each node on the real canvas, after a run on the small FLUX.

    python tools/help_pictures.py             all of them
    python tools/help_pictures.py compile …   these only

Writes web/docs/node_<name>.png. Needs a ComfyUI, as `make setup` makes it, and a Chromium.
"""

from __future__ import annotations

import io
import sys

from canvas import canvas
from comfy_client import Graph
from comfy_host import REPOSITORY, ComfyHost, HostError
from export_templates import BUILD
from PIL import Image
from playwright.sync_api import Page
from template_parts import config, node
from tiny_workflow import MODELS, text_to_image

FOLDER = REPOSITORY / "web" / "docs"
COLOURS, MARGIN = 64, 24  # of a picture; pixels around the nodes
PROMPT = "a large red circle"

# the whole run, in the background of each picture, in one column
REST = ["prompt", "guidance", "negative", "latent", "sampler", "vae", "decode", "save"]
# name -> columns of the nodes to be seen
SEEN: dict[str, list[list[str]]] = {
    "load_transformer": [["config"], ["transformer"]],
    "load_t5": [["config"], ["text_encoders"], ["prompt"]],
    "compile": [["transformer"], ["compile"]],
    "dequantize": [["transformer", "text_encoders"], ["dequantize"]],
    "quantize": [["plain", "transformer"], ["config", "quantize"]],
    "save": [["transformer", "text_encoders"], ["save_packed"]],
}
# node -> pixels by which it is wider and higher than the canvas makes it, so that all of its text is seen
LARGER = {"save_packed": [70, 20]}
# waits for the end of a run; the promise of queuePrompt does not
RUN = """() => new Promise(resolve => {
    for (const name of ['execution_success', 'execution_error'])
        app.api.addEventListener(name, event => resolve(name + JSON.stringify(event.detail)), {once: true})
    app.queuePrompt(0)
})"""
# the nodes at their own size, and where they then are on the page
FRAME = """([ids, larger]) => {
    const nodes = app.graph.nodes.filter(node => ids.includes(node.title))
    for (const node of nodes) node.setSize(node.size.map((side, i) => side + (larger[node.title]?.[i] ?? 0)))
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - title
    const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]))
    const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]))
    const {ds, canvas} = app.canvas, box = canvas.getBoundingClientRect()
    ds.scale = 1
    ds.offset = [100 - left, 150 - top]
    app.canvas.setDirty(true, true)
    return {x: box.left + 100, y: box.top + 150, width: right - left, height: bottom - top}
}"""


def graph_for(name: str) -> Graph:
    """The small FLUX's text-to-image graph with the node of this picture in it."""
    graph = text_to_image(PROMPT)
    sampler = graph["sampler"]["inputs"]
    if name == "compile":
        graph["compile"] = node(
            "QuantFluxCompile", model=["transformer", 0], backend="eager", mode="default", regional=True,
            fullgraph=False, dynamic="auto",
        )  # fmt: skip
        sampler["model"] = ["compile", 0]
    elif name == "dequantize":
        inputs = {"model": ["transformer", 0], "clip": ["text_encoders", 0], "dtype": "auto"}
        graph["dequantize"] = node("QuantFluxDequantize", "Dequantize", **inputs)
        sampler["model"] = ["dequantize", 0]
        for text in ("prompt", "negative"):
            graph[text]["inputs"]["clip"] = ["dequantize", 1]
    elif name == "quantize":
        graph["plain"] = config(precision="none")
        graph["transformer"]["inputs"]["config"] = ["plain", 0]
        graph["quantize"] = node(
            "QuantFluxQuantize", "Quantize Model", model=["transformer", 0], config=["config", 0]
        )  # fmt: skip
        sampler["model"] = ["quantize", 0]
    elif name == "save":
        inputs = {"model": ["transformer", 0], "clip": ["text_encoders", 0]}
        settings = {"filename_prefix": "flux_nf4", "format": "single file"}
        graph["save_packed"] = node("QuantFluxSave", **inputs, **settings)
    return graph


def take(page: Page, name: str) -> Image.Image:
    """The nodes of this picture, after a run of its graph."""
    graph, columns = graph_for(name), SEEN[name]
    seen = [one for column in columns for one in column]
    for one in graph:
        graph[one]["_meta"]["title"] += "" if one in seen else " "  # titles tell the nodes to be seen
    rest = [one for one in graph if one not in seen]
    arguments = {"graph": graph, "groups": [["", columns], ["", [rest]]], "note": "", "downloads": {}, "versions": {}}
    page.evaluate(BUILD, arguments)
    page.evaluate("() => { app.graph.groups.slice().forEach(group => app.graph.remove(group)) }")
    ended = page.evaluate(RUN)
    if not ended.startswith("execution_success"):
        raise HostError(f"{name}: {ended}")
    page.wait_for_timeout(1000)
    titles = [graph[one]["_meta"]["title"] for one in seen]
    larger = {graph[one]["_meta"]["title"]: pixels for one, pixels in LARGER.items() if one in seen}
    box = page.evaluate(FRAME, [titles, larger])
    page.wait_for_timeout(1000)
    clip = {
        "x": box["x"] - MARGIN, "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN, "height": box["height"] + 2 * MARGIN,
    }  # fmt: skip
    return Image.open(io.BytesIO(page.screenshot(clip=clip)))


def main() -> None:
    names = sys.argv[1:] or list(SEEN)
    if unknown := set(names) - set(SEEN):
        sys.exit(f"There is no picture {', '.join(sorted(unknown))}. There are {', '.join(SEEN)}.")
    with ComfyHost(models=MODELS) as host, canvas(host, "QuantFluxLoadTransformer") as page:
        for name in names:
            # nodes that the host has in its cache do not run, and show no text
            host.client.free()
            picture = take(page, name).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            path = FOLDER / f"node_{name}.png"
            picture.save(path, optimize=True)
            print(f"{path.relative_to(REPOSITORY)}: {picture.size}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    try:
        main()
    except HostError as error:
        sys.exit(str(error))
