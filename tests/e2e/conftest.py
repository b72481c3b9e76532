"""One real ComfyUI for all of these tests, with the small FLUX in its model folders."""

import pytest
from comfy_host import ComfyHost, stop_on_terminate
from tiny_workflow import MODELS

CONFIGS = {
    "16-bit": {"precision": "none"},
    "nf4": {"precision": "nf4"},
    "nf4-double-quant": {"precision": "nf4", "double_quant": True},
    "fp4": {"precision": "fp4"},
    "int8": {"precision": "int8"},
}


@pytest.fixture(scope="session")
def host():
    stop_on_terminate()
    with ComfyHost(models=MODELS) as running:
        yield running


@pytest.fixture(scope="session")
def client(host):
    return host.client


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    """Each precision in turn, as inputs of the Quantization Config node."""
    return request.param
