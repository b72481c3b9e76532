"""Pictures of one coloured shape, sentences that describe them, and a reader that needs no learning.

A scene is a shape of one colour, size and position on a plain background. :func:`draw` paints scenes with
antialiased signed distance functions (Quilez, "2D distance functions"), :func:`caption` describes them, and
:func:`read` measures them back from pixels, so a text-to-image model can be scored without another network.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

PICTURE = 128  # pixels a side

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.15, 0.16),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.98, 0.85, 0.15),
    "green": (0.15, 0.65, 0.27),
    "cyan": (0.15, 0.78, 0.85),
    "blue": (0.15, 0.33, 0.85),
    "purple": (0.52, 0.20, 0.70),
    "pink": (0.97, 0.50, 0.70),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.97, 0.97, 0.97),
    "black": (0.06, 0.06, 0.07),
    "gray": (0.50, 0.50, 0.50),
    "beige": (0.91, 0.86, 0.76),
}
# half the extent of the shape, as a fraction of the picture's side
SIZES = {"small": 0.13, "medium": 0.18, "large": 0.25}
# centre (x, y) from the top left corner, as fractions of the picture's side
POSITIONS = {
    "top left": (0.28, 0.28),
    "top": (0.50, 0.28),
    "top right": (0.72, 0.28),
    "left": (0.28, 0.50),
    "center": (0.50, 0.50),
    "right": (0.72, 0.50),
    "bottom left": (0.28, 0.72),
    "bottom": (0.50, 0.72),
    "bottom right": (0.72, 0.72),
}
SIZE_JITTER, POSITION_JITTER = 0.05, 0.01  # relative, and as a fraction of the picture's side
UNKNOWN = "unknown"
TEMPLATE_SIDE = 32
LEAST_OVERLAP = 0.7  # intersection over union under which a blob is no known shape


@dataclass(frozen=True)
class Scene:
    shape: str
    colour: str
    size: str
    position: str
    background: str


# ---- shapes: distance to the outline, negative inside, in a box from -1 to 1 with y pointing down ----


def _polygon(vertices: Sequence[tuple[float, float]]) -> Callable[[Tensor], Tensor]:
    def distance(points: Tensor) -> Tensor:
        x, y = (axis.contiguous() for axis in points.unbind(-1))
        nearest, inside = torch.full_like(x, math.inf), torch.zeros_like(x, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
            ex, ey, dx, dy = bx - ax, by - ay, x - ax, y - ay
            along = ((dx * ex + dy * ey) / (ex * ex + ey * ey)).clamp_(0, 1)
            nearest = torch.minimum(nearest, (dx - along * ex).square_() + (dy - along * ey).square_())
            if ay != by:  # a ray to the right crosses this edge: even-odd rule
                inside ^= ((y < ay) != (y < by)) & (dx < dy * (ex / ey))
        return torch.where(inside, -1.0, 1.0) * nearest.sqrt_()

    return distance


def _circle(points: Tensor) -> Tensor:
    return points.norm(dim=-1) - 1


def _ring(points: Tensor) -> Tensor:
    return (points.norm(dim=-1) - 0.75).abs() - 0.25


def _star_vertices(inner: float = 0.46) -> list[tuple[float, float]]:
    corners = []
    for i in range(10):
        radius, angle = (inner if i % 2 else 1.0), math.pi * i / 5
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return corners


def _heart_vertices(count: int = 32) -> list[tuple[float, float]]:
    corners = []
    for i in range(count):
        a = 2 * math.pi * (i + 0.5) / count
        x = 16 * math.sin(a) ** 3
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        corners.append((x / 17, -(y + 2.5) / 15.5))
    return corners


_ARM = 0.34
_CROSS_VERTICES = [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "circle": _circle,
    "square": _polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": _polygon([(0, -0.95), (1, 0.8), (-1, 0.8)]),
    "star": _polygon(_star_vertices()),
    "cross": _polygon(_CROSS_VERTICES + [(-x, -y) for x, y in _CROSS_VERTICES]),
    "ring": _ring,
    "diamond": _polygon([(0, -1), (0.78, 0), (0, 1), (-0.78, 0)]),
    "heart": _polygon(_heart_vertices()),
}


def _pixel_centres(side: int, device: torch.device | str) -> Tensor:
    steps = (torch.arange(side, device=device) + 0.5) / side
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)


def draw(
    scenes: Sequence[Scene],
    side: int = PICTURE,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Paints ``scenes`` as ``(len(scenes), 3, side, side)`` in 0..1, on ``device``.

    With a (CPU) ``generator`` sizes and positions vary a little inside their class; without, they are exact.
    """
    n = len(scenes)
    half = torch.tensor([SIZES[s.size] for s in scenes])
    centre = torch.tensor([POSITIONS[s.position] for s in scenes])
    if generator is not None:
        half = half * (1 + SIZE_JITTER * (2 * torch.rand(n, generator=generator) - 1))
        centre = centre + POSITION_JITTER * (2 * torch.rand(n, 2, generator=generator) - 1)
    half, centre = half.to(device), centre.to(device)
    ink = torch.tensor([COLOURS[s.colour] for s in scenes], device=device)[:, :, None, None]
    paper = torch.tensor([BACKGROUNDS[s.background] for s in scenes], device=device)[:, :, None, None]

    coverage = torch.empty(n, side, side, device=device)
    pixels = _pixel_centres(side, device)
    for name, distance in SHAPES.items():
        rows = torch.tensor([i for i, s in enumerate(scenes) if s.shape == name], dtype=torch.long, device=device)
        if len(rows) == 0:
            continue
        radius = half[rows, None, None]
        points = (pixels - centre[rows, None, None]) / radius[..., None]
        coverage[rows] = (0.5 - distance(points) * radius * side).clamp(0, 1)  # distance in pixels
    return paper + coverage[:, None] * (ink - paper)


# ---- words ----


def random_scene(rng: random.Random) -> Scene:
    """A scene with every attribute drawn evenly."""
    return Scene(*(rng.choice(list(names)) for names in (SHAPES, COLOURS, SIZES, POSITIONS, BACKGROUNDS)))


def caption(scene: Scene, rng: random.Random) -> str:
    """A sentence or a list of keywords about ``scene``; size, position and background are named half the time."""
    size = scene.size if rng.random() < 0.5 else ""
    position = scene.position if rng.random() < 0.5 else ""
    background = scene.background if rng.random() < 0.5 else ""
    if rng.random() < 0.3:
        place = "centered" if position == "center" else position
        parts = [f"{scene.colour} {scene.shape}", size, place, background and f"{background} background"]
        text = ", ".join(part for part in parts if part)
    else:
        thing = " ".join(word for word in (size, scene.colour, scene.shape) if word)
        text = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
        if rng.random() < 0.2:
            text = rng.choice(("a picture of ", "a drawing of ")) + text
        if position:
            text += f" {'at' if position in ('top', 'left', 'right', 'bottom') else 'in'} the {position}"
        if background:
            text += f" on a {background} background"
    return text[0].upper() + text[1:] if rng.random() < 0.2 else text


def prompts(n: int, seed: int) -> list[tuple[str, str, str]]:
    """``n`` captions for scoring, each with the shape and colour that its picture must show."""
    rng = random.Random(seed)
    chosen = []
    for _ in range(n):
        scene = random_scene(rng)
        chosen.append((caption(scene, rng), scene.shape, scene.colour))
    return chosen


# ---- the reader ----


@lru_cache(maxsize=1)
def _templates() -> tuple[Tensor, Tensor]:
    """Every shape cut out along its bounding box, ``(shapes, TEMPLATE_SIDE, TEMPLATE_SIDE)`` of booleans, and the
    larger half side of that box, which is 1 for a shape that fills its square."""
    reach = 1.1
    points = (2 * _pixel_centres(512, "cpu") - 1) * reach
    squares, box = _cut_out(torch.stack([distance(points) < 0 for distance in SHAPES.values()]))
    return squares, (box[:, 2:] - box[:, :2]).max(1).values * reach


def _cut_out(masks: Tensor) -> tuple[Tensor, Tensor]:
    """``masks`` stretched from their bounding boxes to squares, and the boxes ``(n, 4)``: x0, y0, x1, y1."""
    side = masks.shape[-1]
    columns, rows = masks.any(1).int(), masks.any(2).int()
    first = torch.stack((columns.argmax(1), rows.argmax(1)), 1)
    last = side - torch.stack((columns.flip(1).argmax(1), rows.flip(1).argmax(1)), 1)
    box = torch.cat((first, last), 1).float() / side
    steps = (torch.arange(TEMPLATE_SIDE) + 0.5) / TEMPLATE_SIDE
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    grid = box[:, None, None, :2] + grid * (box[:, None, None, 2:] - box[:, None, None, :2])
    squares = F.grid_sample(masks[:, None].float(), 2 * grid - 1, align_corners=False)[:, 0]
    return squares > 0.5, box


def _nearest(values: Tensor, table: dict) -> list[str]:
    """For each row of ``values`` the name of the closest entry of ``table``."""
    names = list(table)
    entries = torch.tensor([table[name] for name in names]).reshape(len(names), -1)
    return [names[i] for i in torch.cdist(values.reshape(len(values), -1), entries).argmin(1).tolist()]


def _masked_mean(images: Tensor, mask: Tensor) -> Tensor:
    weights = mask.flatten(1).float()
    total = torch.einsum("ncp,np->nc", images.flatten(2), weights)
    return total / weights.sum(1, keepdim=True)  # nan where the mask is empty


def read(images: Tensor) -> list[Scene]:
    """Measures the scenes in ``images``, ``(n, 3, side, side)`` in 0..1.

    The background is the border's median colour; the shape is where the picture differs from it by more than
    half of what the shape's body does; its name is that of the template with the largest overlap. Pictures
    without such a body, or without a plain border, read as ``UNKNOWN`` in shape and colour.
    """
    images = images.detach().float().cpu()
    edges = (images[:, :, :2], images[:, :, -2:], images[..., :2].mT, images[..., -2:].mT)
    border = torch.cat([edge.flatten(2) for edge in edges], 2)
    paper = border.median(2).values
    plain = ((border - paper[..., None]).norm(dim=1) < 0.2).float().mean(1) > 0.9
    contrast = (images - paper[:, :, None, None]).norm(dim=1)
    strong = contrast > 0.2
    level = _masked_mean(contrast[:, None], strong).nan_to_num(math.inf)
    mask = contrast > level[:, :, None] / 2
    mask = F.avg_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0.5  # majority of 3x3: drops specks
    core = mask
    for _ in range(2):
        core = -F.max_pool2d(-core[:, None].float(), 3, 1, 1)[:, 0] > 0
    core = torch.where(core.flatten(1).any(1)[:, None, None], core, mask)

    squares, box = _cut_out(mask)
    templates, extents = _templates()
    squares, templates = squares.flatten(1).float(), templates.flatten(1).float()
    both = squares @ templates.T
    overlap, best = (both / (squares.sum(1)[:, None] + templates.sum(1) - both)).max(1)
    shapes = list(SHAPES)
    known = plain & (overlap >= LEAST_OVERLAP) & (mask.flatten(1).sum(1) >= 25)

    colours = _nearest(_masked_mean(images, core).nan_to_num(), COLOURS)
    papers = _nearest(paper, BACKGROUNDS)
    centres = _nearest((box[:, :2] + box[:, 2:]) / 2, POSITIONS)
    halves = _nearest((box[:, 2:] - box[:, :2]).max(1).values / 2 / extents[best], SIZES)
    return [
        Scene(shapes[best[i]] if known[i] else UNKNOWN, colours[i] if known[i] else UNKNOWN, *rest)
        for i, rest in enumerate(zip(halves, centres, papers, strict=True))
    ]


def read_scene(image: Tensor) -> tuple[str, str]:
    """Shape and colour of one picture, ``(3, side, side)`` in 0..1."""
    scene = read(image[None])[0]
    return scene.shape, scene.colour
