"""Saved models, and the libraries that load them."""

from functools import cache

import pytest
import torch
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.export import provenance_of
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source


@pytest.fixture
def diffusers_on_cpu(monkeypatch):
    """diffusers' quantizers refuse to start without a GPU, which bitsandbytes does not need: that check is left out."""
    for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
        quantizer = getattr(bnb_quantizer, name)
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": torch.device("cpu")})


@pytest.fixture(scope="session")
def loaded_flux(flux_file):
    """A function from a config to (tensors, provenance) of the small FLUX. They are shared: nothing may change them."""
    return cache(lambda config: _loaded(flux_source(open_checkpoint(flux_file), config)))


@pytest.fixture(scope="session")
def loaded_t5(t5_file):
    return cache(lambda config: _loaded(t5_source(open_checkpoint(t5_file), config)))


def _loaded(source):
    return load(source), provenance_of(source)
