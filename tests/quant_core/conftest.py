"""Fixtures for tests that need no host."""

import pytest
import small_models
import torch


def devices() -> list:
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    return ["cpu", pytest.param("cuda", marks=no_gpu)]


@pytest.fixture(params=devices())
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """For weights this small, threads cost more than they bring: far more where other programs keep cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def flux_model():
    return small_models.random_flux()


@pytest.fixture(scope="session")
def flux_file(flux_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    small_models.save_native_flux(flux_model, path)
    return path


@pytest.fixture(scope="session")
def t5_model():
    return small_models.random_t5()


@pytest.fixture(scope="session")
def t5_file(t5_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "t5.safetensors"
    small_models.save_t5(t5_model, path)
    return path
