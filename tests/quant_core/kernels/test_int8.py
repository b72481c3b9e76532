"""The int8 kernels against their plain-torch reference: on a GPU, else in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from interpreter import INTERPRETED, run_interpreted
from quantflux.quant_core.kernels.int8_configs import MatmulConfig
from quantflux.quant_core.kernels.int8_reference import int8_linear_reference, quantize_rows_reference

GPU = torch.cuda.is_available()
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# the interpreter multiplies bfloat16 as if it were integers: there, outlier columns are only tested in the others
DTYPE = torch.float16 if INTERPRETED else torch.bfloat16
TOKENS, ROWS, COLUMNS = 45, 112, 160

PLAIN = MatmulConfig(32, 64, 64, warps=4, stages=3, group=2)
CONFIGS = {
    "plain": PLAIN,
    "few tokens": replace(PLAIN, block_m=16),
    "hopper": MatmulConfig(128, 128, 128, warps=4, stages=3, group=2, kernel="hopper", persistent=2),
    "hopper, wide": MatmulConfig(128, 256, 128, warps=8, stages=3, kernel="hopper", persistent=1),
    "hopper, one program a tile": MatmulConfig(256, 128, 64, warps=8, stages=4, kernel="hopper"),
}


@pytest.fixture
def config(request, kernel_device) -> MatmulConfig:
    config = CONFIGS[request.param]
    if config.kernel == "hopper" and INTERPRETED:
        pytest.skip("Gluon has no interpreter: needs a GPU of compute capability 9.0")
    if config.kernel != "plain" and GPU and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    return config


@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernels are tested in this process")
def test_the_kernels_hold_in_the_interpreter(tmp_path):
    run_interpreted(__file__, tmp_path)


def inputs(generator, dtype=DTYPE, tokens=TOKENS, columns=COLUMNS, outliers=(5, 77, 150)) -> torch.Tensor:
    """Inputs with three columns of which some values, not all, are beyond the usual threshold."""
    x = torch.randn(tokens, columns, generator=generator)
    x[:, list(outliers)] *= 8
    return x.to(dtype)


def packed(generator, rows=ROWS, columns=COLUMNS) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    codes, absmax, _ = quantize_rows_reference(weight)
    return codes, absmax


def assert_within_rounding(actual: torch.Tensor, expected: torch.Tensor):
    """Equal to one unit in the last place of 16 bit; where terms cancel, to float32's rounding of the largest."""
    assert actual.dtype == expected.dtype
    rtol = torch.finfo(actual.dtype).eps if actual.dtype != torch.float32 else 1e-5
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-5 * largest)


def run(x, weight, scale, device, config=PLAIN, bias=None, threshold=0.0, y=None):
    from quantflux.quant_core.kernels.int8_triton import int8_linear_triton

    move = [None if tensor is None else tensor.to(device) for tensor in (x, weight, scale, bias)]
    y = None if y is None else y.clone().to(device)
    return int8_linear_triton(*move, threshold, y, config).cpu()


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_quantized_bit_for_bit(kernel_device, generator, dtype, threshold):
    from quantflux.quant_core.kernels.int8_quantize import quantize_rows

    x = inputs(generator, dtype, tokens=300)
    x[3] = 0
    x[4, 7] = 65504 if dtype == torch.float16 else 1e6
    x[5, :] = torch.arange(COLUMNS) - 80  # with a scale of its own: many ties
    weight, scale = (tensor.to(kernel_device) for tensor in packed(generator))
    codes, absmax, outliers = quantize_rows(x.to(kernel_device), weight, scale, threshold)
    expected_codes, expected_absmax, mask = quantize_rows_reference(x, threshold)
    assert torch.equal(codes.cpu(), expected_codes)
    assert torch.equal(absmax.cpu(), expected_absmax)
    if threshold:
        columns = mask.nonzero().view(-1)
        count = outliers.columns[-1].item()
        assert 3 < count == len(columns)
        assert torch.equal(outliers.columns[:count].cpu(), columns.int())
        assert torch.equal(outliers.gathered[:300, :count].cpu(), x[:, columns])
        if not (INTERPRETED and dtype == torch.bfloat16):  # the interpreter does not round to bfloat16, it cuts
            dequantized = (weight[:, columns.to(kernel_device)] * scale[:, None] * (1 / 127)).to(dtype)
            assert torch.equal(outliers.gathered[300:, :count], dequantized)


def test_no_launch_sees_the_outliers_of_another(kernel_device, generator):
    from quantflux.quant_core.kernels.int8_quantize import quantize_rows

    wide = 5000, (0, 4095, 4096, 4999)
    for columns, outliers in ((COLUMNS, (5, 77)), (40, (39,)), (COLUMNS, ()), wide, (COLUMNS, (1,))):
        x = torch.full((300, columns), 0.5)
        for row, column in enumerate(outliers):
            x[row * 7, column] = -6.0
        weight, scale = (tensor.to(kernel_device) for tensor in packed(generator, 8, columns))
        found = quantize_rows(x.to(kernel_device), weight, scale, 6.0)[2].columns.tolist()
        assert found[-1] == len(outliers)
        assert tuple(found[: len(outliers)]) == outliers


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("config", CONFIGS, indirect=True)
def test_the_product_is_that_of_the_reference(kernel_device, generator, config, threshold):
    x, (weight, scale) = inputs(generator), packed(generator)
    bias = torch.randn(ROWS, generator=generator).to(DTYPE)
    ours = run(x, weight, scale, kernel_device, config, bias, threshold)
    assert_within_rounding(ours, int8_linear_reference(x, weight, scale, bias, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", ["plain", "hopper"], indirect=True)
def test_the_product_is_added_to_what_is_there(kernel_device, generator, config, dtype):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cannot multiply bfloat16")
    if config.kernel == "hopper" and dtype == torch.float32:
        pytest.skip("for inputs of 16 bit")
    x, (weight, scale) = inputs(generator, dtype), packed(generator)
    y = torch.randn(TOKENS, ROWS, generator=generator).to(dtype)
    ours = run(x, weight, scale, kernel_device, config, threshold=6.0, y=y)
    assert_within_rounding(ours, int8_linear_reference(x, weight, scale, threshold=6.0, y=y))


@pytest.mark.parametrize(("tokens", "rows", "columns"), [(1, 96, 160), (45, 99, 151), (70, 33, 20), (3, 1, 1)])
def test_no_size_need_be_a_multiple_of_anything(kernel_device, generator, tokens, rows, columns):
    x = inputs(generator, tokens=tokens, columns=columns, outliers=(0,))
    weight, scale = packed(generator, rows, columns)
    for threshold in (0.0, 6.0):
        ours = run(x, weight, scale, kernel_device, replace(PLAIN, block_m=16), threshold=threshold)
        assert_within_rounding(ours, int8_linear_reference(x, weight, scale, threshold=threshold))


@pytest.mark.parametrize("config", ["plain", "hopper"], indirect=True)
def test_more_outlier_columns_than_are_gathered(kernel_device, generator, config):
    columns = 608
    x = inputs(generator, tokens=20, columns=columns, outliers=range(0, columns - 3)) * 8
    weight, scale = packed(generator, 40, columns)
    assert quantize_rows_reference(x, 6.0)[2].sum() > 550
    ours = run(x, weight, scale, kernel_device, config, threshold=6.0)
    assert_within_rounding(ours, int8_linear_reference(x, weight, scale, threshold=6.0))


def test_rows_that_lie_apart_are_read_where_they_are(kernel_device, generator):
    wide, (weight, scale) = inputs(generator, columns=2 * COLUMNS), packed(generator)
    x = wide.to(kernel_device)[:, :COLUMNS]
    assert not x.is_contiguous()
    ours = run(x, weight, scale, kernel_device, threshold=6.0)
    assert_within_rounding(ours, int8_linear_reference(x.cpu(), weight, scale, threshold=6.0))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_inputs_beyond_float16_stay_finite_and_nan_shows(kernel_device, generator, threshold):
    x, (weight, scale) = inputs(generator, torch.float32 if INTERPRETED else torch.bfloat16), packed(generator)
    x[1, 7] = 1e6
    x[2, 9] = float("nan")
    ours = run(x, weight, scale, kernel_device, threshold=threshold)
    expected = int8_linear_reference(x, weight, scale, threshold=threshold)
    assert ours[2].isnan().all() and expected[2].isnan().all()
    others = [row for row in range(TOKENS) if row != 2]
    assert ours[others].isfinite().all()
    assert_within_rounding(ours[others], expected[others])


@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("config", [name for name in CONFIGS if "few" not in name], indirect=True)
def test_many_tiles_at_real_sizes_are_those_of_the_reference(kernel_device, generator, config):
    """Programs that go through many tiles, with columns enough to fill the pipeline many times over."""
    x = inputs(generator, torch.bfloat16, tokens=2600, columns=3072).to(kernel_device)
    weight, scale = (tensor.to(kernel_device) for tensor in packed(generator, 9216, 3072))
    for threshold in (0.0, 6.0):
        ours = run(x, weight, scale, kernel_device, config, threshold=threshold)
        assert_within_rounding(ours, int8_linear_reference(x, weight, scale, threshold=threshold).cpu())


@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
def test_streams_find_their_own_outliers(kernel_device, generator):
    """Rows that run beside each other, on two streams at a time, many times over."""
    from quantflux.quant_core.kernels.int8_quantize import quantize_rows

    weight, scale = (tensor.to(kernel_device) for tensor in packed(generator, 64, 3072))
    streams = [torch.cuda.Stream(kernel_device) for _ in range(2)]
    placed = [torch.randperm(3072, generator=generator)[: 5 + n].sort().values for n in range(100)]
    base = torch.randn(4352, 3072, generator=generator).clamp_(-5, 5).bfloat16().to(kernel_device)
    inputs = []
    for columns in placed:
        x = base.clone()
        x[torch.randint(4352, columns.shape, generator=generator), columns] = 20.0
        inputs.append(x)
    torch.cuda.synchronize()
    found = []
    for n, x in enumerate(inputs):
        with torch.cuda.stream(streams[n % 2]):
            found.append(quantize_rows(x, weight, scale, 6.0)[2].columns)
    torch.cuda.synchronize()
    for columns, listed in zip(placed, found, strict=True):
        assert listed[-1].item() == len(columns)
        assert torch.equal(listed[: len(columns)].cpu(), columns.int())


@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("outliers", [False, True])
def test_this_card_uses_its_own_kernels(kernel_device, outliers):
    from quantflux.quant_core.kernels.int8_triton import _gluon_works, plain_triton_works

    assert plain_triton_works(kernel_device, outliers)
    if torch.cuda.get_device_capability() == (9, 0):
        assert _gluon_works(kernel_device, outliers)


def test_no_tokens_give_no_results(kernel_device, generator):
    assert run(inputs(generator)[:0], *packed(generator), kernel_device).shape == (0, ROWS)
