"""The host's own modules in this process, on the CPU unless there is a GPU."""

import sys

import pytest
import small_models
import torch
from comfy_host import has_accelerator, host_root


def pytest_configure():
    sys.path.insert(0, str(host_root()))
    import comfy.cli_args

    # before anything imports comfy.model_management, which looks for a device at once
    comfy.cli_args.args.cpu = not has_accelerator()


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes so."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def flux_model():
    return small_models.random_flux().float()


@pytest.fixture(scope="session")
def flux_file(flux_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    small_models.save_native_flux(flux_model, path)
    return path


@pytest.fixture(scope="session")
def text_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    small_models.save_t5(small_models.random_t5(vocab_size=32128), folder / "t5.safetensors")
    small_models.save_clip_l(small_models.random_clip_l(), folder / "clip_l.safetensors")
    return folder
