"""RMS normalization: the kernel against torch's, and what it takes."""

import pytest
import torch
from interpreter import INTERPRETED, run_interpreted
from quantflux.quant_core.kernels import rms_norm as module
from quantflux.quant_core.kernels import triton_available
from quantflux.quant_core.kernels.rms_norm import MAX_COLUMNS, can_normalize, rms_norm, rms_norm_reference

GPU = torch.cuda.is_available() and triton_available(torch.device("cuda", 0))
# the interpreter cuts bfloat16 off instead of rounding
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
EPS = 1e-6


@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernel is tested in this process")
def test_the_kernel_holds_in_the_interpreter(tmp_path):
    run_interpreted(__file__, tmp_path)


def assert_rounded(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float = EPS):
    """Each value of ``y`` is the exact one, or one of the two beside it."""
    assert y.dtype == x.dtype and y.shape == x.shape and y.is_contiguous()
    information = torch.finfo(x.dtype)
    exact = rms_norm_reference(x.double(), weight.double(), eps)
    smallest = max(information.smallest_normal * information.eps, 1e-37)
    torch.testing.assert_close(y.double(), exact, rtol=information.eps, atol=smallest)


# one value, one less than a power of two, FLUX's heads, the longest
@pytest.mark.parametrize("columns", [1, 63, 128, MAX_COLUMNS])
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_rounds_once(dtype, rows, columns, generator, kernel_device):
    x = (4 * torch.randn(rows, columns, generator=generator)).to(kernel_device, dtype)
    weight = torch.randn(columns, generator=generator).to(x)
    assert_rounded(rms_norm(x, weight, EPS), x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_takes_rows_that_lie_apart(dtype, generator, kernel_device):
    """Queries and keys of two pictures, 21 tokens and 3 heads, as FLUX's blocks cut them from their products."""
    product = torch.randn(2, 21, 3 * 3 * 64 + 40, generator=generator).to(kernel_device, dtype)
    weight = torch.randn(64, generator=generator).to(product)
    q, k, _ = product[..., : 3 * 3 * 64].view(2, 21, 3, 3, 64).permute(2, 0, 3, 1, 4)
    for x in (q, k, q[:, :, 5:], q[0], q[0, 1], q[0, 1, 2], q[:, :0], product.transpose(0, 2)[:64].transpose(0, 2)):
        assert_rounded(rms_norm(x, weight, EPS), x, weight)


@pytest.mark.parametrize("eps", [1e-6, 0.5, None])
def test_eps_is_in_the_root(eps, generator, kernel_device):
    x = (2e-4 * torch.randn(5, 128, generator=generator)).to(kernel_device, DTYPES[0])
    weight = torch.ones_like(x[0])
    assert_rounded(rms_norm(x, weight, eps), x, weight, torch.finfo(torch.float32).eps if eps is None else eps)


def test_the_kernel_keeps_what_is_not_finite_in_its_row(kernel_device):
    x = torch.ones(3, 64, device=kernel_device).half()
    x[0, 5], x[1, 5] = float("nan"), 0
    y = rms_norm(x, torch.ones_like(x[0]), EPS)
    assert y[0].isnan().all() and y[1:].isfinite().all()


def test_it_takes_16_bit_and_a_weight_like_the_input(monkeypatch):
    x, weight = torch.ones(2, 3, 4, 64).bfloat16(), torch.ones(64).bfloat16()
    assert not can_normalize(x, weight)  # on a CPU
    monkeypatch.setattr(module, "triton_available", lambda device: True)
    assert can_normalize(x, weight) and can_normalize(x.half(), weight.half())
    assert not can_normalize(x, weight.float()) and not can_normalize(x.float(), weight.float())
    assert not can_normalize(x, weight.to("meta")) and not can_normalize(x[..., :32], weight)
    assert not can_normalize(x[None], weight) and not can_normalize(x, torch.ones(4, 64).bfloat16())
    assert not can_normalize(torch.ones(2, 1025).bfloat16(), torch.ones(1025).bfloat16())


def test_only_what_is_trained_is_left_to_torch(monkeypatch):
    """The host's parameters ask for gradients, which nobody computes."""
    monkeypatch.setattr(module, "triton_available", lambda device: True)
    x, weight = torch.ones(2, 64).bfloat16(), torch.nn.Parameter(torch.ones(64).bfloat16())
    assert not can_normalize(x, weight)
    with torch.inference_mode():
        assert can_normalize(x, weight)


@pytest.mark.skipif(not GPU, reason="needs a GPU that Triton runs on")
class TestOnAGPU:
    @pytest.mark.parametrize("eps", [1e-6, None])
    def test_torch_means_the_same_by_eps(self, eps, generator):
        """With values so small that it decides."""
        x = (3e-4 * torch.randn(64, 128, generator=generator)).cuda().bfloat16()
        weight = torch.randn(128, generator=generator).to(x)
        ours, theirs = rms_norm(x, weight, eps), rms_norm_reference(x, weight, eps)
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0)
