"""Saving and reloading at the shapes of FLUX's real layers, one block of each type: the same bits in both forms."""

import pytest
import torch
from full_sizes import FLUX_BLOCKS
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.export import Provenance, save_diffusers_folder, save_single_file
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
from random_packed import FORMATS, random_bytes, weight_and_values


@pytest.fixture(scope="module")
def some_bytes():
    return random_bytes()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return all(torch.equal(x, y) for x, y in zip(plain_tensors(a), plain_tensors(b), strict=True))


@pytest.mark.parametrize("form", ["nf4", "fp4 nested blocksize 128", "int8"])
def test_both_forms_hold_the_same_bits(form, generator, some_bytes, tmp_path):
    precision, blocksize, nested = FORMATS[form]
    config = QuantConfig(precision, blocksize=blocksize or 64, double_quant=nested)
    tensors = {}
    for name, shape in FLUX_BLOCKS.tensor_shapes().items():
        if len(shape) == 2:
            tensors[name], _ = weight_and_values(shape, FORMATS[form], generator, some_bytes)
        else:
            tensors[name] = torch.randn(shape, generator=generator).to(torch.bfloat16)
    provenance = Provenance("random", "", config, FLUX_BLOCKS, {})
    save_single_file(tmp_path / "flux.safetensors", tensors, provenance)
    save_diffusers_folder(tmp_path / "flux", tensors, provenance)
    from_file, from_folder = (load(flux_source(open_checkpoint(tmp_path / n))) for n in ("flux.safetensors", "flux"))
    assert from_file.keys() == from_folder.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(from_file[name], tensor), name
        # stacking parts again expands nested statistics: other bits for the same values
        if not nested:
            assert same_bits(from_folder[name], tensor), name
        elif is_packed(tensor):
            assert torch.equal(dequantize(from_folder[name], torch.float32), dequantize(tensor, torch.float32)), name
