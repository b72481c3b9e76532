"""The templates' thumbnails: what each makes in a real run on small models, on a card that says which it is."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from comfy_client import Finished, Graph
from comfy_host import REPOSITORY, ComfyHost
from PIL import Image, ImageDraw, ImageFont
from tiny_workflow import MODELS

sys.path.append(str(REPOSITORY / "tests" / "support"))  # the small models and the local Hub are the tests' own

import template_models  # noqa: E402
from hub_server import running_hub  # noqa: E402

CARD, STRIP, GAP = 320, 58, 8
INK, GREY, PAPER, PACKED, BEFORE = "#1a1a1a", "#666666", "white", "#2f6fdb", "#b9c3d0"
QUALITY = 85  # of JPEG
MIB = 1024**2

Run = Callable[[Graph], Finished]
Picture = Image.Image


@dataclass(frozen=True)
class Thumbnail:
    """How a thumbnail is made.

    Attributes:
        title: the large line on the card.
        prompt: what the small FLUX draws, in `steps`.
        paint: makes the card's picture of what came out, given a function that runs a further graph, and the graph.
        changes: inputs of nodes, by their ids, where the template's values say nothing to the small models.
    """

    title: str
    prompt: str
    paint: Callable[[Finished, Run, Graph], Picture]
    steps: int = 20
    changes: dict[str, dict[str, object]] = field(default_factory=dict)


# what is on the card


def picture(finished: Finished, run: Run, graph: Graph) -> Picture:
    return finished.images[-1].resize((CARD - STRIP, CARD - STRIP), Image.Resampling.LANCZOS)


def tiles(finished: Finished, run: Run, graph: Graph) -> Picture:
    """The picture with the borders of the tiles that it was decoded in."""
    drawn = picture(finished, run, graph)
    lines = ImageDraw.Draw(drawn)
    side = drawn.width // 2
    for i in range(0, drawn.width, 10):
        lines.line([side, i, side, i + 4], GREY)
        lines.line([i, side, i + 4, side], GREY)
    return drawn


def pair(before: Picture, after: Picture) -> Picture:
    side = (CARD - 5 * GAP) // 2
    both = Image.new("RGB", (CARD, CARD - STRIP), PAPER)
    draw = ImageDraw.Draw(both)
    top = (both.height - side) // 2
    for left, one in ((GAP, before), (CARD - GAP - side, after)):
        both.paste(one.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top))
        draw.rectangle([left - 1, top - 1, left + side, top + side], outline=BEFORE)
    middle, y = CARD // 2, both.height // 2
    draw.polygon([(middle - 6, y - 9), (middle - 6, y + 9), (middle + 8, y)], INK)
    return both


def lora(finished: Finished, run: Run, graph: Graph) -> Picture:
    """Without the LoRAs, and with them."""
    for node_id in ("lora", "second_lora"):
        inputs = graph[node_id]["inputs"]
        inputs |= {key: 0.0 for key in inputs if key.startswith("strength")}
    return pair(run(graph).images[0], finished.images[0])


def controlled(finished: Finished, run: Run, graph: Graph) -> Picture:
    return pair(*finished.images)


def edited(finished: Finished, run: Run, graph: Graph) -> Picture:
    return pair(template_models.example_picture().convert("RGB"), finished.images[0])


def filled(finished: Finished, run: Run, graph: Graph) -> Picture:
    """The picture with its mask hatched, and what was drawn under it."""
    source = template_models.example_picture()
    hatched = Image.new("RGB", source.size, "#d8d8d8")
    draw = ImageDraw.Draw(hatched)
    for i in range(-source.width, source.width, 8):
        draw.line([i, 0, i + source.width, source.height], "#a0a0a0", 2)
    hatched.paste(source.convert("RGB"), mask=source.getchannel("A"))
    return pair(hatched, finished.images[0])


def files(finished: Finished, run: Run, graph: Graph) -> Picture:
    """The files that were saved, each beside what the model takes at 16 bit."""
    card = Image.new("RGB", (CARD, CARD - STRIP), PAPER)
    draw = ImageDraw.Draw(card)
    saved = finished.outputs["save_model"]["quantflux"]
    for row, (one, loader) in enumerate(zip(saved, ("transformer", "text_encoders"), strict=True)):
        before, top = finished.outputs[loader]["quantflux"][0]["bytes_16bit"], 24 + row * 122
        draw.text((20, top), one["path"].split("/")[0], GREY, ImageFont.load_default(14))
        draw.text((20, top + 16), one["file"], INK, ImageFont.load_default(14))
        longest = max(loaded["quantflux"][0]["bytes_16bit"] for loaded in finished.outputs.values() if "bytes_16bit" in
                      loaded["quantflux"][0])  # fmt: skip
        for line, (label, size, colour) in enumerate((("16 bit", before, BEFORE), ("nf4", one["bytes"], PACKED))):
            y = top + 40 + line * 26
            draw.rectangle([20, y, 20 + size / longest * 170, y + 20], colour)
            draw.text(
                (26 + size / longest * 170, y + 2), f"{label}: {size / MIB:.1f} MiB", INK, ImageFont.load_default(13)
            )
    return card


def charts(finished: Finished, run: Run, graph: Graph) -> Picture:
    """The plan's chart above that of the quality report."""
    shown = {file.node_id: Image.open(io.BytesIO(file.data)).convert("RGB") for file in finished.saved}
    card = Image.new("RGB", (CARD, CARD - STRIP), PAPER)
    half = card.height // 2 - GAP // 2
    for top, chart in ((0, shown["plan_chart"]), (half + GAP, shown["quality_chart"])):
        smaller = chart.resize((CARD, round(CARD * chart.height / chart.width)), Image.Resampling.LANCZOS)
        card.paste(smaller.crop((0, 0, CARD, half)), (0, top))
    return card


EDGES = {"apply": {"strength": 0.2, "end_percent": 0.6}}
THUMBNAILS = {
    "tiny_flux_text_to_image": Thumbnail("The small FLUX", "a large red heart on a white background", picture),
    "flux_dev_text_to_image": Thumbnail("NF4", "a large yellow star on a black background", picture),
    "flux_dev_8bit": Thumbnail("LLM.int8()", "a large purple cross on a beige background", picture),
    "flux_dev_low_vram": Thumbnail("8 GB of VRAM", "a large green ring on a white background", tiles,
                                   changes={"decode": {"tile_size": 64, "overlap": 16}}),
    "flux_dev_lora_stack": Thumbnail("Two LoRAs", "a large orange triangle on a gray background", lora,
                                     changes={"lora": {"strength_model": 7.0}, "second_lora": {"strength_model": 0.2}}),
    "flux_dev_controlnet": Thumbnail("ControlNet", "a large red square on a white background", controlled, 10, EDGES),
    "flux_kontext_edit": Thumbnail("Kontext", "a large red circle on a white background", edited),
    "flux_fill_inpaint": Thumbnail("Fill", "a red circle in the bottom right", filled,
                                   changes={"guidance": {"guidance": 3.5}, "sampler": {"seed": 3}}),
    "flux_dev_from_hub": Thumbnail("From the Hub", "a large cyan diamond on a black background", picture),
    "flux_dev_save_packed": Thumbnail("Save packed", "", files),
    "flux_dev_plan_and_quality": Thumbnail("Plan and quality", "a large red circle on a white background", charts),
    "flux_dev_compile": Thumbnail("torch.compile", "a large pink star on a beige background", picture),
}  # fmt: skip


def write_thumbnails(names: list[str], folder: Path) -> None:
    """Run these templates on small models, and write `<name>.jpg` of each into `folder`."""
    with running_hub() as hub, TemporaryDirectory(prefix="thumbnails-") as temporary:
        hub.add(template_models.HUB_REPO, template_models.packed_pipeline())
        local = {"HF_ENDPOINT": hub.url, "HF_HOME": temporary, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        with patch.dict(os.environ, local), ComfyHost(models=MODELS) as host:
            template_models.add_stand_ins(host, Path(temporary))
            if "flux_dev_controlnet" in names:
                template_models.add_controlnet(host, temporary, whole=True)
            for name in names:
                path = folder / f"{name}.jpg"
                _card(name, host.client.run).save(path, quality=QUALITY, optimize=True)
                print(f"{path} · {path.stat().st_size / 1000:.1f} kB")


def _card(name: str, run: Run) -> Picture:
    recipe = THUMBNAILS[name]
    graph = template_models.small(name, recipe.prompt, recipe.steps)
    for node_id, changed in recipe.changes.items():
        graph[node_id]["inputs"] |= changed
    painted = recipe.paint(run(graph), run, graph)
    card = Image.new("RGB", (CARD, CARD), PAPER)
    draw = ImageDraw.Draw(card)
    edge = painted.crop((0, 0, 1, painted.height)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    draw.rectangle([0, 0, CARD, CARD - STRIP], edge)  # where the picture is not as wide
    card.paste(painted, ((CARD - painted.width) // 2, 0))
    draw.rectangle([0, CARD - STRIP, CARD, CARD], PAPER)
    draw.line([0, CARD - STRIP, CARD, CARD - STRIP], BEFORE)
    draw.text((14, CARD - STRIP + 6), recipe.title, INK, ImageFont.load_default(24))
    draw.text((14, CARD - STRIP + 35), "from a run on the small FLUX", GREY, ImageFont.load_default(14))
    return card
