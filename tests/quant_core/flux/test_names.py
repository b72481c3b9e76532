import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from native_names import native_state_dict
from quantflux.quant_core.flux.names import LINEARS, diffusers_parts

SIZES = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 128,
    "num_attention_heads": 24,  # diffusers' converter knows no other hidden size than 3072
}


def small_state_dict() -> dict[str, torch.Tensor]:
    """A transformer's tensors with few columns: the map concerns rows only."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(16, 56, 56), **SIZES
        )
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape[0], *(2 for _ in tensor.shape[1:]), generator=generator)
        for name, tensor in model.state_dict().items()
    }


def test_diffusers_own_converter_leads_back_to_the_same_tensors():
    diffusers_names = small_state_dict()
    back = convert_flux_transformer_checkpoint_to_diffusers(native_state_dict(diffusers_names))
    assert back.keys() == diffusers_names.keys()
    for name, tensor in diffusers_names.items():
        assert torch.equal(back[name], tensor), name


def test_a_model_without_guidance_is_mapped_without_it():
    diffusers_names = {name: t for name, t in small_state_dict().items() if "guidance_embedder" not in name}
    native = native_state_dict(diffusers_names)
    assert not any(name.startswith("guidance_in") for name in native)
    assert "vector_in.in_layer.weight" in native


def test_parts_are_named_for_every_module_and_block():
    assert diffusers_parts("single_blocks.37.linear1") == (
        "single_transformer_blocks.37.attn.to_q",
        "single_transformer_blocks.37.attn.to_k",
        "single_transformer_blocks.37.attn.to_v",
        "single_transformer_blocks.37.proj_mlp",
    )
    assert diffusers_parts("final_layer.linear") == ("proj_out",)
    assert diffusers_parts("no.such.module") == ()
    assert all(diffusers_parts(template.format(0)) for template in LINEARS)
