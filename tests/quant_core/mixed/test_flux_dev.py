"""The costs measured on FLUX.1-dev, and what a plan makes of them at its real size, without its weights."""

import dataclasses

import pytest
import torch
from quantflux.quant_core.checkpoint import Checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.header import TensorInfo
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.mixed.flux_dev import flux_dev_costs, four_bit, has_its_blocks, measured
from quantflux.quant_core.source import flux_source

GIB = 2**30
DEV = FluxConfig(
    in_channels=64, out_channels=64, hidden_size=3072, num_heads=24, mlp_size=12288, context_in_dim=4096,
    vec_in_dim=768, depth=19, depth_single_blocks=38, guidance_embed=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """FLUX.1-dev by its header alone."""
    path = str(tmp_path_factory.mktemp("dev") / "flux1-dev.safetensors")
    infos = {name: TensorInfo(shape, torch.bfloat16, path) for name, shape in DEV.tensor_shapes().items()}
    return Checkpoint(path, infos)


def source_of(checkpoint, budget_gib, **fields):
    return flux_source(checkpoint, QuantConfig(**({"precision": "nf4"} | fields), budget_gib=budget_gib))


def test_the_table_is_whole_and_as_published():
    table = measured()
    assert len(table) == 57 and {len(errors) for errors in table.values()} == {9}
    assert table["double_blocks.0"]["Q4_0"] == 183.73 and table["double_blocks.18"]["Q2_K"] == 204.03
    assert table["single_blocks.0"]["Q4_0"] == 19.431 and table["single_blocks.37"]["Q8_0"] == 0.13739
    assert all(error > 0 for error in four_bit().values())


def test_what_8_bit_costs_too_is_not_taken_for_a_cost_of_4_bit():
    # block 0 at 8 bit is costlier than most single blocks at 4, though 8 bit rounds far finer
    assert measured()["double_blocks.0"]["Q8_0"] > measured()["single_blocks.34"]["Q4_0"]
    assert four_bit()["double_blocks.0"] == pytest.approx((183.73 + 110.99 + 125.26) / 3 - 61.301)


def test_recipes_cost_in_proportion_to_what_they_do_to_weights():
    recipes = [QuantConfig("nf4"), QuantConfig("fp4"), QuantConfig("nf4", blocksize=32, double_quant=True)]
    costs = flux_dev_costs(recipes)
    assert {errors["nf4"] for errors in costs.values()} == set(four_bit().values())
    for errors in costs.values():
        assert errors["fp4"] > errors["nf4"] > errors["nf4 blocksize 32 double quant"] > 0


def test_finetunes_and_tools_have_the_same_blocks_and_pruned_models_have_not():
    assert has_its_blocks(DEV) and has_its_blocks(dataclasses.replace(DEV, in_channels=384, guidance_embed=False))
    assert not has_its_blocks(dataclasses.replace(DEV, depth=8))


def test_the_plan_for_flux_dev_keeps_the_budget_with_the_harmful_blocks_at_16_bit(checkpoint):
    source = source_of(checkpoint, 7.5)
    assert source.costs == "costs measured on FLUX.1-dev"
    assert 0.98 * 7.5 * GIB < planned_nbytes(source) <= 7.5 * GIB
    # a double block has 2.4 times the weights of a single one
    density = {block: cost / (2.4 if block.startswith("double") else 1) for block, cost in four_bit().items()}
    plain = {
        b for b in density if source.recipe(f"{b}.{'img_mlp.0' if b[0] == 'd' else 'linear1'}").precision == "none"
    }
    assert len(plain) >= 4
    packed = density.keys() - plain
    assert min(density[b] for b in plain) > sorted(density[b] for b in packed)[len(packed) * 3 // 4]
    assert {source.recipe(m).precision for m in DEV.linear_shapes() if "_blocks" not in m} == {"none"}
    assert not source.uses_int8


@pytest.mark.parametrize("budget", [6.1, 6.5, 8.0, 12.0, 20.0])
def test_a_larger_budget_costs_less(checkpoint, budget):
    def predicted(gib: float) -> float:
        source = source_of(checkpoint, gib)
        of_block = {".".join(name.split(".")[:2]): recipe for name, recipe in source.packed.items()}
        return sum(flux_dev_costs([recipe])[block][recipe.describe()] for block, recipe in of_block.items())

    assert predicted(budget + 0.5) < predicted(budget)


def test_at_8_bit_the_same_blocks_come_first(checkpoint):
    source = source_of(checkpoint, 13.0, precision="int8")
    assert set(source.precisions) == {"int8 threshold 6", "16-bit"}
    assert planned_nbytes(source) <= 13.0 * GIB
