"""What the tests of a real ComfyUI over HTTP share; the host itself is in tests/conftest.py."""

import pytest

CONFIGS = {
    "16-bit": {"precision": "none"},
    "nf4": {"precision": "nf4"},
    "nf4-double-quant": {"precision": "nf4", "double_quant": True},
    "fp4": {"precision": "fp4"},
    "int8": {"precision": "int8"},
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    """Each precision in turn, as inputs of the Quantization Config node."""
    return request.param
