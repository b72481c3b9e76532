"""Makes workflows/*.json, the canvas templates, from workflows/api/*.json, the same graphs for programs.

The host's own frontend lays out and writes them, so they are what a user would have saved. Needs a Chromium.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from canvas import canvas
from comfy_host import REPOSITORY, ComfyHost, HostError
from tiny_workflow import MODELS, load_workflow

TEMPLATES = REPOSITORY / "workflows"
HUB = "https://huggingface.co"

NOTES = {
    "tiny_flux_text_to_image": """### QuantFlux: the small FLUX

Draws one coloured shape, in seconds on a CPU. Its files are in `tests/assets/tiny_flux` of the QuantFlux repository
and belong into the model folders `diffusion_models`, `text_encoders` and `vae`.

Choose another **precision** in Quantization Config and run again: the loader shows the memory that it takes.

Words it knows: circle, square, triangle, star, cross, ring, diamond, heart; small, medium, large; nine positions,
such as *in the top left*; and colours, also for the background. It is small, and draws best at a cfg of 2.""",
    "flux_dev_text_to_image": """### QuantFlux: FLUX.1-dev in 4 bit

1. The three downloads that the canvas offers are the 16-bit originals; FLUX.1-dev asks for a login and its licence.
2. **Quantization Config** says how they are packed while they are read: nf4 takes 6.2 GiB for the transformer
   instead of 22.2.
3. Run. Nothing is written: the next start reads the 16-bit file again.

`double_quant` saves another half GiB. `int8` is nearer to 16 bit and takes 11.1 GiB.""",
}

# file -> (where to get it, model folder), for the canvas to offer
DOWNLOADS = {
    "flux1-dev.safetensors": (f"{HUB}/black-forest-labs/FLUX.1-dev/resolve/main", "diffusion_models"),
    "ae.safetensors": (f"{HUB}/black-forest-labs/FLUX.1-dev/resolve/main", "vae"),
    "t5xxl_fp16.safetensors": (f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main", "text_encoders"),
    "clip_l.safetensors": (f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main", "text_encoders"),
}

# node ids from left to right, and in each column from top to bottom
COLUMNS = {
    "tiny_flux_text_to_image": [
        ["config", "vae"],
        ["transformer", "text_encoders", "latent"],
        ["prompt", "guidance", "negative"],
        ["sampler", "decode"],
        ["save"],
    ],
    "flux_dev_text_to_image": [
        ["config", "vae"],
        ["transformer", "text_encoders", "latent"],
        ["prompt", "guidance", "shift"],
        ["noise", "sampler_select", "scheduler", "guider"],
        ["sampler", "decode"],
        ["save"],
    ],
}

# Builds the graph on the canvas and gives it back as the frontend would save it.
BUILD = """
async ({graph, columns, note, downloads}) => {
    app.graph.clear()
    const nodes = {}
    const place = (id, x, y) => {
        const node = nodes[id] = LiteGraph.createNode(graph[id].class_type)
        node.title = graph[id]._meta.title
        app.graph.add(node)
        for (const widget of node.widgets ?? []) {
            if (widget.name === 'control_after_generate') widget.value = 'fixed'
            if (widget.name in graph[id].inputs) widget.value = graph[id].inputs[widget.name]
        }
        const models = Object.values(graph[id].inputs).filter(value => value in downloads)
            .map(name => ({name, url: `${downloads[name][0]}/${name}`, directory: downloads[name][1]}))
        if (models.length) node.properties.models = models
        const [width, height] = node.computeSize()
        node.setSize([Math.max(width, 340), graph[id].class_type === 'SaveImage' ? 400 : height])
        node.pos = [x, y]
        return y + node.size[1] + 60
    }
    columns.forEach((ids, column) => ids.reduce((y, id) => place(id, column * 400, y), 0))
    for (const [id, {inputs}] of Object.entries(graph)) {
        for (const [name, value] of Object.entries(inputs)) {
            if (!Array.isArray(value)) continue
            nodes[value[0]].connect(value[1], nodes[id], nodes[id].findInputSlot(name))
        }
    }
    const guide = LiteGraph.createNode('MarkdownNote')
    app.graph.add(guide)
    guide.pos = [-480, 0]
    guide.setSize([420, 360])
    guide.widgets[0].value = note
    return JSON.stringify((await app.graphToPrompt()).workflow)
}
"""
SHOW_ALL = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"


def export(names: list[str], screenshots: Path | None = None) -> None:
    """Write the template of each API-format workflow in `names`; also a picture of its canvas, to look at."""
    with ComfyHost(models=MODELS) as host, canvas(host, "QuantFluxLoadTransformer") as page:
        for name in names:
            arguments = {"graph": load_workflow(name), "columns": COLUMNS[name], "note": NOTES[name]}
            workflow = json.loads(page.evaluate(BUILD, arguments | {"downloads": DOWNLOADS}))
            (TEMPLATES / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n")
            if screenshots:
                page.evaluate(SHOW_ALL)
                page.wait_for_timeout(1000)
                page.screenshot(path=screenshots / f"{name}.png")


if __name__ == "__main__":
    try:
        export(list(NOTES), Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except HostError as error:
        sys.exit(str(error))
