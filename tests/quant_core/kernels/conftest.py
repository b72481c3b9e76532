"""Where a kernel is tested: on a GPU that it runs on, else in Triton's interpreter."""

import pytest
import torch
from interpreter import INTERPRETED, NO_DEVICE
from quantflux.quant_core.kernels import MIN_COMPUTE_CAPABILITY, triton_available


@pytest.fixture
def kernel_device(request) -> torch.device:
    """Of the least compute capability that the test's module asks for, as ``LEAST_CAPABILITY``."""
    least = getattr(request.module, "LEAST_CAPABILITY", MIN_COMPUTE_CAPABILITY)
    gpu = torch.device("cuda", 0)
    if torch.cuda.is_available() and triton_available(gpu) and torch.cuda.get_device_capability(gpu) >= least:
        return gpu
    if INTERPRETED:
        return torch.device("cpu")
    pytest.skip(f"{NO_DEVICE}: needs compute capability {least[0]}.{least[1]}; interpreted where there is none")
