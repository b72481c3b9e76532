"""The inventory of a model's memory, and its table and picture."""

import mmap

import numpy
import pytest
import torch
from quantflux.quant_core import memory
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import nbytes, plain_tensors, quantize
from quantflux.quant_core.lora import LowRank
from quantflux.quant_core.memory import CPU, GPU, MAPPED, Held, Inventory
from quantflux.quant_core.report import memory_chart, memory_text
from quantflux.quant_core.report.drawing import MARGIN, PALE, TEXT, WIDTH, font
from quantflux.quant_core.report.memory_chart import AT_16_BIT, COLOURS, TOP
from safetensors import safe_open
from safetensors.torch import save_file

MIB = 2**20
HELD = [
    Held("Transformer", memory.PACKED, GPU, 600 * MIB, 2400 * MIB),
    Held("Transformer", memory.STATISTICS, GPU, 75 * MIB, 0),
    Held("Transformer", memory.NORMS, GPU, 100, 100),
    Held("T5", memory.PACKED, CPU, 200 * MIB, 800 * MIB),
    Held("T5", memory.EMBEDDINGS, MAPPED, 50 * MIB, 25 * MIB),
]


def packed_layer(**config) -> torch.nn.Linear:
    layer = torch.nn.Linear(128, 64)
    weight = quantize(torch.randn(64, 128, dtype=torch.bfloat16), QuantConfig(**config))
    weight._is_param = True
    layer._parameters["weight"] = weight
    return layer


def inventory(*modules, **originals) -> dict[str, tuple[int, int]]:
    """group -> (bytes, bytes at 16 bit)"""
    found = Inventory()
    for module in modules:
        found.add("it", module, **originals)
    return {one.group: (one.nbytes, one.nbytes_16bit) for one in found.held()}


@pytest.mark.parametrize(
    "config", [{"precision": "nf4"}, {"precision": "fp4", "double_quant": True}, {"precision": "int8"}], ids=str
)
def test_packed_weights_and_their_statistics_are_counted_to_the_byte(config):
    layer = packed_layer(**config)
    found = inventory(layer)
    data = 64 * 128 // (1 if config["precision"] == "int8" else 2)
    assert found[memory.PACKED] == (data, 2 * 64 * 128)
    assert found[memory.STATISTICS] == (nbytes(layer.weight) - data, 0)
    assert found[memory.BIASES] == (4 * 64, 2 * 64)


def test_each_kind_of_layer_has_its_group_and_16_bit_size():
    layers = torch.nn.ModuleDict(
        {
            "linear": torch.nn.Linear(8, 4, bias=False),
            "embedding": torch.nn.Embedding(10, 4),
            "norm": torch.nn.LayerNorm(4, bias=False),
            "convolution": torch.nn.Conv2d(2, 2, 1, bias=False),
        }
    )
    layers.register_buffer("table", torch.zeros(5))
    layers["linear"].low_rank = LowRank(torch.zeros(2, 8), torch.zeros(4, 2))
    assert inventory(layers, originals=[torch.zeros(3)]) == {
        memory.SKIPPED: (128, 64),
        memory.EMBEDDINGS: (160, 80),
        memory.CONVOLUTIONS: (16, 8),
        memory.NORMS: (16, 8),
        memory.OTHER: (20, 10),
        memory.LORA: (96, 48),
        memory.ORIGINALS: (12, 6),
    }


def test_what_is_shared_counts_once_and_a_slice_as_all_that_it_keeps():
    one, other = torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(8, 4, bias=False)
    other.weight = torch.nn.Parameter(one.weight.detach())
    assert inventory(one, other, one) == {memory.SKIPPED: (128, 64)}
    other.weight = torch.nn.Parameter(torch.zeros(100, 8)[:4])
    assert inventory(other) == {memory.SKIPPED: (3200, 64)}


@pytest.mark.parametrize(
    "config", [{"precision": "nf4"}, {"precision": "nf4", "double_quant": True}, {"precision": "int8"}], ids=str
)
def test_statistics_are_told_from_numbers_where_both_lie_in_one_block_of_memory(config):
    """As those of an offloaded weight do, once it is pinned."""
    layer = packed_layer(**config)
    before = inventory(layer)
    parts, at = plain_tensors(layer.weight), 0
    block = torch.frombuffer(mmap.mmap(-1, 4 * mmap.PAGESIZE), dtype=torch.uint8)
    for part in parts:
        with torch.no_grad():
            part.set_(block[at : at + part.nbytes].view(part.dtype).view(part.shape))
        at += -(-part.nbytes // 64) * 64
    assert len({part.untyped_storage().data_ptr() for part in plain_tensors(layer.weight)}) == 1
    found = inventory(layer, layer)
    assert found[memory.STATISTICS] == before[memory.STATISTICS]
    # with what the block has more than its tensors
    spare = len(block) - nbytes(layer.weight)
    assert found[memory.PACKED] == (before[memory.PACKED][0] + spare, before[memory.PACKED][1])


def test_slices_of_one_tensor_count_all_their_weights_at_16_bit():
    whole, layers = torch.zeros(12, 8), [torch.nn.Linear(8, 4, bias=False) for _ in range(3)]
    for i, layer in enumerate(layers):
        layer.weight = torch.nn.Parameter(whole[4 * i : 4 * i + 4])
    assert inventory(*layers) == {memory.SKIPPED: (4 * 12 * 8, 2 * 12 * 8)}
    # what lies over others is there already
    layers[0].weight = torch.nn.Parameter(whole)
    assert inventory(*layers) == {memory.SKIPPED: (4 * 12 * 8, 2 * 12 * 8)}


@pytest.mark.skipif(not memory._file_maps(), reason="only Linux says what is mapped")
def test_tensors_of_a_mapped_file_are_told_apart_and_the_file_counts_by_tensor(tmp_path):
    save_file({"a": torch.randn(64, 128), "b": torch.randn(64, 128)}, tmp_path / "x.safetensors")
    layer = torch.nn.Linear(128, 64, bias=False)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        layer.weight = torch.nn.Parameter(file.get_tensor("a"))
    own = torch.nn.Linear(128, 64, bias=False)
    found = Inventory()
    found.add("of the file", layer)
    found.add("own", own)
    size = 4 * 64 * 128
    assert found.held() == [
        Held("of the file", memory.SKIPPED, MAPPED, size, size // 2),
        Held("own", memory.SKIPPED, CPU, size, size // 2),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_agrees_with_what_is_allocated():
    before = torch.cuda.memory_allocated()
    layer = torch.nn.Linear(4096, 4096, device="cuda", dtype=torch.bfloat16)
    layer._parameters["weight"] = quantize(layer.weight.detach(), QuantConfig("nf4", double_quant=True))
    found = Inventory()
    found.add("it", layer)
    assert {one.place for one in found.held()} == {GPU}
    allocated = torch.cuda.memory_allocated() - before
    assert sum(one.nbytes for one in found.held()) == pytest.approx(allocated, rel=0.01)


def test_the_table_is_aligned_and_adds_up():
    text = memory_text(HELD, {"VRAM": {"allocated": 700 * MIB, "peak": 2**30}})
    table, process = text.split("\n\n")
    lines = table.splitlines()
    assert lines[1].split() == ["Transformer", "675.0", "MiB", "2.34", "GiB", "1.68", "GiB", "GPU"]
    assert lines[3].split() == ["their", "statistics", "75.0", "MiB", "0.0", "MiB", "-75.0", "MiB", "GPU"]
    assert lines[5].endswith("CPU + mapped file")
    assert lines[-1].split()[:3] == ["total", "925.0", "MiB"]
    column = lines[0].index("now") + 3
    assert all(line[:column].endswith(("GiB", "MiB")) for line in lines[1:] if not line.startswith("-"))
    assert process.splitlines() == ["VRAM", "  allocated    700.0 MiB", "  peak          1.00 GiB"]


def pixels_of(picture, colour: str) -> int:
    rgb = tuple(bytes.fromhex(colour[1:]))
    return sum(count for count, found in picture.getcolors(2**20) if found == rgb)


def test_areas_in_the_chart_are_as_the_bytes():
    picture = memory_chart(HELD)
    assert picture.mode == "RGB" and picture.width == WIDTH
    swatch = 27 * 27
    packed, statistics = (pixels_of(picture, COLOURS[group]) - swatch for group in (memory.PACKED, memory.STATISTICS))
    assert packed / statistics == pytest.approx(800 / 75, rel=0.15)
    assert pixels_of(picture, PALE) > packed
    # too small for a pixel, and so not in the legend either
    assert not pixels_of(picture, COLOURS[memory.NORMS])


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB, 7 * 2**30, 5 * 2**40])
def test_every_size_can_be_drawn_and_told(size):
    held = [Held("VAE", memory.CONVOLUTIONS, CPU, size, size // 2)]
    assert memory_chart(held).height == memory_chart(HELD[:1]).height
    assert "VAE" in memory_text(held, {})


def test_a_long_name_ends_before_the_numbers():
    held = [Held("an_encoder_of_another_project_" * 3, memory.PACKED, CPU, 3 * 2**30, 2**30)]
    picture = numpy.asarray(memory_chart(held).convert("L"))
    end = round(WIDTH - MARGIN - font(TEXT).getlength("3.00 GiB on CPU"))
    name = picture[TOP + 10 : TOP + 46]
    # grid lines are lighter
    assert (name[:, MARGIN : end - 100] < 0xB0).any() and not (name[:, end - 16 : end - 2] < 0xB0).any()


def test_nothing_can_be_drawn_and_told():
    assert memory_chart([]).width == WIDTH
    assert memory_text([], {}).splitlines()[-1].startswith("total")


def test_every_group_has_a_colour_of_its_own():
    assert set(COLOURS) == {*memory.GROUPS, AT_16_BIT}
    assert len(set(COLOURS.values())) == len(COLOURS)
