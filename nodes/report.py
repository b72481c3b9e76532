"""What nodes show: a line of text on a loader once it has loaded, and charts."""

import numpy
import torch
from PIL import Image

from ..quant_core.memory import model_nbytes, readable
from ..quant_core.source import Source


def loaded(source: Source, model: torch.nn.Module) -> dict[str, list]:
    """UI output: a line of text, and the same figures for programs that read the history."""
    now, at_16_bit = model_nbytes(model.parameters())
    text = f"{source.describe()} · {readable(now)} (16-bit: {readable(at_16_bit)})"
    figures = {
        "precision": source.config.precision,
        "layers": dict(source.precisions),
        "bytes": now,
        "bytes_16bit": at_16_bit,
    }
    return {"text": [text], "quantflux": [figures]}


def image(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as the host's IMAGE: float32 ``(1, height, width, 3)`` from 0 to 1."""
    return torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255)[None]
