"""A FLUX, and the folders that diffusers made of it.

``docs/formats.md`` lists every kind of file that people have, what becomes of each, and the test here that holds the
loader to it.
"""

import pytest
import small_models
import torch
from format_files import flux_folder_by_diffusers
from native_names import native_state_dict


@pytest.fixture(autouse=True, scope="module")
def small_weights(one_thread):
    """In all tests of this folder."""


@pytest.fixture(scope="session")
def flux_model():
    """Smaller than the other tests' model: nearly every test here packs or unpacks one."""
    return small_models.random_flux(num_attention_heads=2)


@pytest.fixture(scope="session")
def flux_file(flux_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    small_models.save_native_flux(flux_model, path)
    return path


@pytest.fixture(scope="session")
def native(flux_model):
    """The model's 16-bit tensors under native names."""
    return native_state_dict(flux_model.state_dict())


@pytest.fixture(scope="session")
def linears(native):
    return {name.removesuffix(".weight") for name, tensor in native.items() if tensor.ndim == 2}


@pytest.fixture(scope="session")
def folder_of_diffusers(flux_model, tmp_path_factory):
    """Recipe -> (a folder that diffusers packed, the native values that it stands for by bitsandbytes)."""
    made = {}

    def make(config, dtype=torch.bfloat16):
        if (config, dtype) not in made:
            folder = tmp_path_factory.mktemp("packed") / "transformer"
            values = flux_folder_by_diffusers(flux_model, config, folder, dtype)
            made[config, dtype] = folder, native_state_dict(values)
        return made[config, dtype]

    return make


@pytest.fixture
def folder_copy(folder_of_diffusers, tmp_path):
    """As above, a copy that a test may change."""

    def make(config, dtype=torch.bfloat16):
        folder, values = folder_of_diffusers(config, dtype)
        copy = tmp_path / "transformer"
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        return copy, values

    return make
