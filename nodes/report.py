"""What a loader says on its node once it has loaded."""

import torch

from ..quant_core.config import QuantConfig
from ..quant_core.memory import model_nbytes, readable


def loaded(config: QuantConfig, model: torch.nn.Module) -> dict[str, list]:
    """UI output: a line of text, and the same figures for programs that read the history."""
    now, at_16_bit = model_nbytes(model.parameters())
    text = f"{config.describe()} · {readable(now)} (16-bit: {readable(at_16_bit)})"
    figures = {"precision": config.precision, "bytes": now, "bytes_16bit": at_16_bit}
    return {"text": [text], "quantflux": [figures]}
