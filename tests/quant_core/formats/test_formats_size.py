"""FLUX of full size, planned from its header."""

import json
import time

import torch
from format_files import write_sparse
from full_sizes import FLUX_DEV
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.source import flux_source


def seconds_to_plan(path):
    """(seconds, source, bytes planned): the best of three, as other programs may run too."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        source = flux_source(open_checkpoint(path))
        planned = planned_nbytes(source)
        seconds.append(time.perf_counter() - start)
    return min(seconds), source, planned


def test_a_file_of_24_gb_is_identified_and_planned_from_its_header_in_under_a_second(tmp_path):
    path = tmp_path / "flux1-dev.safetensors"
    shapes = {name: torch.Size(shape) for name, shape in FLUX_DEV.tensor_shapes().items()}
    write_sparse(path, {name: ("BF16", shape, 2 * shape.numel()) for name, shape in shapes.items()}, {})
    assert path.stat().st_size > 23.7e9
    seconds, source, planned = seconds_to_plan(path)
    assert source.model == FLUX_DEV
    # half a byte a weight and a float32 for 64 of them; biases and norms stay as they are
    weights = sum(shape.numel() for shape in shapes.values() if len(shape) == 2)
    others = sum(2 * shape.numel() for shape in shapes.values() if len(shape) == 1)
    assert planned == weights * 9 // 16 + others
    assert seconds < 1


def test_a_packed_flux_of_full_size_is_planned_from_its_header_in_under_a_second(tmp_path):
    tensors, content = {}, {}
    for name, shape in FLUX_DEV.tensor_shapes().items():
        numbers = torch.Size(shape).numel()
        if len(shape) == 1:
            tensors[name] = ("BF16", shape, 2 * numbers)
            continue
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
        state_name, text = f"{name}.quant_state.bitsandbytes__nf4", json.dumps(state).encode()
        tensors[name] = ("U8", (numbers // 2, 1), numbers // 2)
        tensors[f"{name}.absmax"] = ("F32", (numbers // 64,), numbers // 16)
        tensors[f"{name}.quant_map"] = ("F32", (16,), 64)
        tensors[state_name] = ("U8", (len(text),), len(text))
        content[state_name] = text
    path = tmp_path / "flux1-dev-nf4.safetensors"
    write_sparse(
        path, prefixed_names("model.diffusion_model.", tensors), prefixed_names("model.diffusion_model.", content)
    )
    seconds, source, planned = seconds_to_plan(path)
    assert source.model == FLUX_DEV
    assert source.is_packed
    assert planned == sum(
        size for name, (_, _, size) in tensors.items() if not name.endswith((".quant_map", "bitsandbytes__nf4"))
    )
    assert seconds < 1


def prefixed_names(prefix, values):
    return {prefix + name: value for name, value in values.items()}
