"""Reading a model and quantizing it as it comes: one 16-bit layer at a time, never the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from comfy_kitchen.tensor import QuantizedTensor

from .layouts import Int8Layout, is_packed, quantize
from .read_ahead import read_ahead
from .source import Source

Progress = Callable[[int, int], None]


@torch.no_grad()
def load(
    source: Source,
    device: torch.device | str = "cpu",
    destination: torch.device | str | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Read the model; what is packed stays packed, and what ``source.packed`` names is quantized as it says.

    At any moment one layer is held at 16 bit on ``device``. Where nothing is quantized and the destination is the CPU,
    weights stay mapped from the file; else nothing refers to it any more.

    Args:
        device: where weights are quantized.
        destination: where results are kept; by default ``device``.
        progress: called with (tensors done, tensors in all) after each tensor, and now and then within one that takes
            long; what it raises ends the loading.

    Returns:
        tensor of the model -> packed or plain tensor.

    Raises:
        CheckpointError: the file cannot be read to the end, or a packed weight's statistics are unusable.
    """
    device = torch.device(device)
    destination = torch.device(destination or device)
    tensors: dict[str, torch.Tensor] = {}
    checkpoint = source.checkpoint
    names = _read_on_device(source, device, destination)

    def tell():
        if progress is not None:
            progress(len(tensors), len(source.tensors))

    with checkpoint.reader() as mapped, read_ahead(mapped, checkpoint.tensors, names, device, tell) as reader:
        for name, assembly in source.tensors.items():
            recipe = source.packed.get(name)
            if recipe is not None:
                packed = quantize(assembly.read(reader, device), recipe, tell)
                if device.type == "cuda":
                    # bitsandbytes quantizes on the default stream, which a move on another would not wait for
                    torch.cuda.default_stream(device).synchronize()
                tensor = packed.to(destination)
            else:
                tensor = assembly.read(reader, destination)
                if is_packed(tensor):
                    tensor = _with_threshold(tensor, source.config.int8_threshold)
                elif source.packed and destination.type == "cpu":
                    tensor = tensor.clone()
            tensors[name] = tensor
            tell()
    return tensors


def _read_on_device(source: Source, device: torch.device, destination: torch.device) -> list[str]:
    """Stored tensors that :func:`load` reads on ``device``, in its order.

    What goes to another one stays mapped: read ahead, it would hold up all that comes after it.
    """
    wanted = [name for name in source.tensors if name in source.packed or destination == device]
    return [part.name for name in wanted for part in source.tensors[name].parts]


def _with_threshold(weight: QuantizedTensor, threshold: float) -> QuantizedTensor:
    """The threshold belongs to the arithmetic and is in no weight's file."""
    if weight._layout_cls != Int8Layout.NAME:
        return weight
    params = dataclasses.replace(weight._params, threshold=threshold)
    return QuantizedTensor(weight._qdata, weight._layout_cls, params)
