"""What nodes show once they have run: lines of text, and charts."""

from collections.abc import Sequence

import numpy
import torch
from PIL import Image

from ..quant_core.memory import model_nbytes, readable
from ..quant_core.source import Source
from .host.node_text import show_on_node


def shown(lines: Sequence[str], figures: Sequence[dict]) -> dict[str, list]:
    """UI output: lines of text, shown on the node too, and their figures for programs that read the history."""
    show_on_node("\n".join(lines))
    return {"text": list(lines), "quantflux": list(figures)}


def loaded(source: Source, model: torch.nn.Module) -> dict[str, list]:
    """UI output of a loader: what it has loaded, and what that takes."""
    now, at_16_bit = model_nbytes(model.parameters())
    text = f"{source.describe()} · {readable(now)} (16-bit: {readable(at_16_bit)})"
    figures = {
        "precision": source.config.precision,
        "layers": dict(source.precisions),
        "bytes": now,
        "bytes_16bit": at_16_bit,
    }
    return shown([text], [figures])


def preformatted(text: str) -> str:
    """A text in columns as an output: Preview as Text takes it for Markdown, and would run its lines together."""
    return f"```\n{text}\n```"


def image(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as the host's IMAGE: float32 ``(1, height, width, 3)`` from 0 to 1."""
    return torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255)[None]
