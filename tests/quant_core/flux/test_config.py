import dataclasses

import pytest
import torch
from diffusers import FluxTransformer2DModel
from native_names import native_state_dict
from quantflux.quant_core.assembly import Assembly
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.flux.config import FluxConfig, read_flux_config
from quantflux.quant_core.stored.plain import Plain
from small_models import FLUX_SIZES

DEV = FluxConfig(
    in_channels=64,
    out_channels=64,
    hidden_size=3072,
    num_heads=24,
    mlp_size=12288,
    context_in_dim=4096,
    vec_in_dim=768,
    depth=19,
    depth_single_blocks=38,
    guidance_embed=True,
)
MODELS = {
    "dev": DEV,
    "schnell": dataclasses.replace(DEV, guidance_embed=False),
    "fill": dataclasses.replace(DEV, in_channels=384),
    "canny": dataclasses.replace(DEV, in_channels=128),
    "small": FluxConfig(64, 64, 256, 2, 1024, 128, 64, 2, 4, True),
}


def read(shapes) -> FluxConfig:
    tensors = {name: Assembly((Plain(name, tuple(shape), torch.bfloat16),)) for name, shape in shapes.items()}
    return read_flux_config("flux.safetensors", tensors)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_configuration_is_read_back_from_its_shapes(config):
    assert read(config.tensor_shapes()) == config


def test_shapes_are_those_of_diffusers_model_under_native_names():
    with torch.device("meta"):
        model = FluxTransformer2DModel(**FLUX_SIZES)
    native = {name: tuple(tensor.shape) for name, tensor in native_state_dict(model.state_dict()).items()}
    assert read(native).tensor_shapes() == native


def test_flux_dev_has_the_size_it_is_known_for():
    shapes = DEV.linear_shapes()
    assert len(shapes) == 314
    assert round(sum(rows * columns for rows, columns in shapes.values()) / 1e9, 2) == 11.90
    assert DEV.axes_dim == [16, 56, 56]


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("img_in.weight", None),
        ("img_in.weight", (3072,)),
        ("img_in.weight", (3072, 0)),
        ("double_blocks.0.img_attn.norm.query_norm.scale", (100,)),
        ("final_layer.linear.weight", None),
    ],
)
def test_shapes_of_no_flux_are_refused(tensor, shape):
    shapes = DEV.tensor_shapes()
    if shape is None:
        del shapes[tensor]
    else:
        shapes[tensor] = shape
    with pytest.raises(CheckpointError, match="flux.safetensors"):
        read(shapes)
