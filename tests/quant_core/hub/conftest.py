"""A local Hub for each test, and the function under test pointed at it."""

import hub_server
import pytest
from quantflux.quant_core.hub import hub_path
from quantflux.quant_core.identify import FLUX


@pytest.fixture
def hub(monkeypatch):
    hub_server.forget_this_machines_settings(monkeypatch)
    with hub_server.running_hub() as running:
        yield running


@pytest.fixture
def fetch(hub, tmp_path):
    """``hub_path`` against the local Hub and an empty cache."""

    def call(hub_repo, wanted=FLUX, endpoint=hub.url):
        return hub_path(hub_repo, wanted, endpoint=endpoint, cache_dir=str(tmp_path / "cache"))

    return call
