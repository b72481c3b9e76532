import pytest
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel
from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear
from quantflux.quant_core.skip import is_skipped, unmatched
from torch.nn import Linear

LISTS = [
    [],
    ["proj_out"],
    ["transformer_blocks.0"],
    ["single_transformer_blocks.0.proj_out", "x_embedder"],
    ["to_q", "norm1"],
    ["attn"],
    ["transformer_blocks"],
    ["no_such_module"],
]


def tiny_transformer() -> FluxTransformer2DModel:
    with init_empty_weights():
        return FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=True,
            axes_dims_rope=(8, 28, 28),
        )


@pytest.mark.parametrize("skip_modules", LISTS, ids=str)
def test_a_list_keeps_the_modules_that_diffusers_keeps(skip_modules):
    model = tiny_transformer()
    names = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    quantized = replace_with_bnb_linear(
        model, modules_to_not_convert=skip_modules, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    kept_by_diffusers = [name for name in names if not isinstance(quantized.get_submodule(name), Linear4bit)]
    assert [name for name in names if is_skipped([name], skip_modules)] == kept_by_diffusers


def test_a_glob_matches_the_whole_name():
    assert is_skipped(["single_blocks.3.linear2"], ["single_blocks.*.linear2"])
    assert is_skipped(["double_blocks.11.img_mlp.0"], ["double_blocks.1?.*"])
    assert not is_skipped(["single_blocks.3.linear2"], ["*.linear1"])
    assert not is_skipped(["single_blocks.3.linear2"], ["linear?"])


def test_a_module_is_kept_under_any_of_its_names():
    assert is_skipped(["single_blocks.0.linear1", "single_transformer_blocks.0.proj_mlp"], ["proj_mlp"])


def test_entries_that_match_nothing_are_found():
    assert unmatched(["img_in", "txt_in"], ["img_in", "imgin", "time*"]) == ["imgin", "time*"]
