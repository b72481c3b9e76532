"""Draws the registry's pictures of the pack: docs/icon.png, 400×400, and docs/banner.png, 1260×540 (21:9).

The letter Q, made of 16 pieces: the values that 4 bits can tell apart. Behind the banner's text, a bell curve as NF4
sees it, whose 16 levels lie as close together as weights do.
"""

import math
from pathlib import Path

from bitsandbytes.functional import get_4bit_type
from comfy_host import REPOSITORY
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

NIGHT, CYAN, VIOLET, WHITE, GREY = (17, 20, 38), (56, 214, 230), (146, 92, 246), (245, 247, 255), (164, 172, 204)
LEVELS = 16
SCALE = 4  # drawn so much larger, for smooth edges
ICON, BANNER = (400, 400), (1260, 540)


def main() -> None:
    """Write both, in few colours so that they stay small."""
    for name, picture in (("icon", icon()), ("banner", banner())):
        path = Path(REPOSITORY / "docs" / f"{name}.png")
        picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.relative_to(REPOSITORY)}: {picture.width}×{picture.height}, {path.stat().st_size / 1000:.0f} kB")


def icon() -> Image.Image:
    """The Q on a dark square with round corners."""
    width, height = (side * SCALE for side in ICON)
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), 72 * SCALE, fill=NIGHT)
    _draw_q(draw, width / 2, height / 2, 138 * SCALE)
    return picture.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The Q, the name, and what it does."""
    width, height = (side * SCALE for side in BANNER)
    picture = Image.new("RGB", (width, height), NIGHT)
    draw = ImageDraw.Draw(picture)
    _draw_levels(draw, width, height)
    _draw_q(draw, 232 * SCALE, height / 2 - 30 * SCALE, 120 * SCALE)
    _write(draw, "QuantFlux", 420, 130, 112, WHITE)
    _write(draw, "FLUX on the card you own", 424, 262, 44, CYAN)
    _write(draw, "NF4 · FP4 · LLM.int8(), in ComfyUI", 424, 328, 32, GREY)
    return picture.resize(BANNER, Image.Resampling.LANCZOS)


def _draw_q(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A ring of 16 pieces around (x, y), and the letter's tail."""
    step, gap = 360 / LEVELS, 4
    for level in range(LEVELS):
        start = 90 - step / 2 + level * step
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.arc(box, start + gap / 2, start + step - gap / 2, _blend(level / (LEVELS - 1)), round(radius * 0.36))
    thick = radius * 0.15
    ends = [(x + side * radius * part, y + side * radius * part) for side, part in ((1, 0.28), (1, 0.88))]
    draw.line(ends, WHITE, round(2 * thick))
    for end_x, end_y in ends:
        draw.ellipse((end_x - thick, end_y - thick, end_x + thick, end_y + thick), fill=WHITE)


def _draw_levels(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """A bar for each of NF4's 16 values, from -1 to 1, as high as the bell curve is there."""
    values = get_4bit_type("nf4", device="cpu").tolist()
    for level, value in enumerate(values):
        x, top = width * (0.5 + 0.47 * value), height * (1 - 0.27 * math.exp(-2.2 * value * value))
        colour = tuple((dark + bright) // 2 for dark, bright in zip(NIGHT, _blend(level / (LEVELS - 1)), strict=True))
        draw.rounded_rectangle((x - 11 * SCALE, top, x + 11 * SCALE, height), 8 * SCALE, fill=colour)


def _write(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, size: int, colour: Colour) -> None:
    draw.text((x * SCALE, y * SCALE), text, colour, ImageFont.load_default(size * SCALE))


def _blend(part: float) -> Colour:
    """From cyan, 0, to violet, 1."""
    return tuple(round(a + (b - a) * part) for a, b in zip(CYAN, VIOLET, strict=True))


if __name__ == "__main__":
    main()
