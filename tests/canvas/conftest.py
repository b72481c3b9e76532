"""The canvas of the host in a headless browser: a browser and a page for each file, a workflow for each test.

FRONTEND_ROOT=…/comfyui_frontend_package/static runs them on another frontend (docs/hosts.md).
"""

import pytest
import requests
from canvas import headless_browser, new_page
from canvas_user import CanvasUser
from comfy_host import HostError


# not for the whole session: while it is open, the event loop of playwright runs, and no other can
@pytest.fixture(scope="module")
def browser():
    try:
        with headless_browser() as running:
            yield running
    except HostError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def example_picture(browser, host):
    """The picture that a ComfyUI brings along in its input folder, for Load Image."""
    picture = host.root / "input" / "example.png"
    (host.base / "input" / picture.name).write_bytes(picture.read_bytes())


@pytest.fixture(scope="module", autouse=True)
def validated(browser, client):
    """The canvas tells of workflows that break its schema; newer ones do only with this setting."""
    requests.post(f"{client.url}/api/settings/Comfy.Validation.Workflows", json=True, timeout=60).raise_for_status()


@pytest.fixture(scope="module")
def page(browser, host):
    page = new_page(browser, host)
    page.set_default_timeout(15_000)
    yield page
    page.close()


@pytest.fixture(scope="module")
def visitor(page, host):
    visitor = CanvasUser(page, host)
    visitor.visit()
    return visitor


@pytest.fixture
def user(visitor):
    """A person in front of an empty canvas. After the test, the browser's console must be free of errors of ours."""
    visitor.new_workflow()
    yield visitor
    assert visitor.faults() == []
