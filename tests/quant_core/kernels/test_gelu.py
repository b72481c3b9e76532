"""GELU: the kernel and the formula of compiled graphs against torch's, and when they are chosen."""

import pytest
import torch
from interpreter import INTERPRETED, run_interpreted
from quantflux.quant_core.kernels import gelu as module
from quantflux.quant_core.kernels import triton_available
from quantflux.quant_core.kernels.gelu import gelu, gelu_by_sigmoid, gelu_by_triton, gelu_reference

GPU = torch.cuda.is_available() and triton_available(torch.device("cuda", 0))
# the interpreter cuts bfloat16 off instead of rounding
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernel is tested in this process")
def test_the_kernel_holds_in_the_interpreter(tmp_path):
    run_interpreted(__file__, tmp_path)


def exact(x: torch.Tensor) -> torch.Tensor:
    """In float64, and not with a tanh, which loses small values even there."""
    value = x.double()
    return value * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (value + 0.044715 * value**3))


def assert_rounded(y: torch.Tensor, x: torch.Tensor):
    """Each value of ``y`` is the exact one, or one of the two beside it."""
    assert y.dtype == x.dtype
    information = torch.finfo(x.dtype)
    # float32 ends where bfloat16 does, float16 before
    smallest = max(information.smallest_normal * information.eps, 1e-37)
    torch.testing.assert_close(y.double(), exact(x), rtol=information.eps, atol=smallest)


# rows that begin where Triton expects none, one that is no multiple of a program's, several programs a row
@pytest.mark.parametrize("columns", [1, 37, 1000, 2048, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_rounds_once(columns, dtype, generator, kernel_device):
    x = (4 * torch.randn(3, columns, generator=generator)).to(kernel_device, dtype)
    assert_rounded(gelu_by_triton(x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_takes_rows_that_lie_apart(dtype, generator, kernel_device):
    whole = torch.randn(2, 5, 700, generator=generator).to(kernel_device, dtype)
    for x in (whole[..., 300:], whole[:, 1:4, 13:], whole.transpose(1, 2), whole[0, :, 7], whole[:, :0]):
        y = gelu_by_triton(x)
        assert y.shape == x.shape and y.is_contiguous()
        assert_rounded(y, x)


def test_the_kernel_keeps_what_is_not_finite(kernel_device):
    x = torch.tensor([float("inf"), float("nan"), 60000.0, -60000.0, 0.0], device=kernel_device).half()
    y = gelu_by_triton(x).tolist()
    assert y[0] == float("inf") and y[1] != y[1] and y[2:] == [60000.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_formula_rounds_once(dtype, generator):
    x = (4 * torch.randn(4, 5000, generator=generator)).to(dtype)
    assert_rounded(gelu_by_sigmoid(x), x)


def test_what_they_are_held_to_is_torchs(generator):
    x = torch.randn(1000, generator=generator).double()
    torch.testing.assert_close(exact(x), gelu_reference(x), rtol=1e-12, atol=1e-15)


def test_the_formula_is_more_exact_than_torch_in_small_values():
    x = torch.linspace(-8, -3, 500).bfloat16()
    ours, theirs = ((y.double() - exact(x)).norm() for y in (gelu_by_sigmoid(x), gelu_reference(x)))
    assert ours <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_elsewhere_it_is_torchs(dtype, generator):
    x = torch.randn(4, 50, generator=generator).to(dtype)
    assert torch.equal(gelu(x), gelu_reference(x))


@pytest.mark.skipif(not GPU, reason="needs a GPU that Triton runs on")
class TestOnAGPU:
    def test_it_is_the_kernel(self, generator, monkeypatch):
        calls = []
        monkeypatch.setattr(module, "gelu_by_triton", lambda x: calls.append(x) or gelu_reference(x))
        x = torch.randn(4, 50, generator=generator).cuda()
        gelu(x.bfloat16())
        assert len(calls) == 1
        gelu(x)
        gelu(x.bfloat16().requires_grad_())
        assert len(calls) == 1

    def test_a_compiled_graph_has_the_formula(self, generator):
        x = torch.randn(4, 5000, generator=generator).cuda().bfloat16()
        torch._dynamo.reset()
        with torch.no_grad():
            y = torch.compile(gelu, fullgraph=True)(x[:, 100:])
        assert_rounded(y, x[:, 100:])
        ours, theirs = ((made.double() - exact(x[:, 100:])).norm() for made in (y, gelu_reference(x[:, 100:])))
        assert ours <= 1.01 * theirs
