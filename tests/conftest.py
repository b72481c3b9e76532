"""One real ComfyUI for all tests that talk to one, with the small FLUX in its model folders."""

import os

import pytest
from comfy_host import ComfyHost, stop_on_signals
from tiny_workflow import MODELS


@pytest.fixture(scope="session")
def host():
    stop_on_signals()
    # FRONTEND_ROOT: the `static` folder of an unpacked comfyui_frontend_package, instead of the host's own canvas
    frontend = os.environ.get("FRONTEND_ROOT")
    with ComfyHost(models=MODELS, extra_flags=("--front-end-root", frontend) if frontend else ()) as running:
        yield running


@pytest.fixture(scope="session")
def client(host):
    return host.client
