"""What the host's starter says when the host does not start. (It starts in tests/e2e.)"""

import pytest
from comfy_host import DEFAULT_HOST, ComfyHost, HostError, host_root


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that makes a ComfyUI folder whose main.py is the given text."""

    def make(main):
        root = tmp_path / "ComfyUI"
        (root / "comfy").mkdir(parents=True)
        (root / "comfy" / "cli_args.py").write_text('parser.add_argument("--disable-api-nodes")')
        (root / "main.py").write_text(main)
        monkeypatch.setenv("COMFYUI_PATH", str(root))
        return root

    return make


def test_comfyui_path_names_the_host(stand_in):
    root = stand_in("")
    assert host_root() == root


def test_without_comfyui_path_it_is_the_one_that_setup_makes(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert host_root(check=False) == DEFAULT_HOST


def test_a_folder_without_comfyui_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostError, match=f"{tmp_path}.*COMFYUI_PATH"):
        host_root()


def test_a_host_that_dies_shows_the_end_of_its_log(stand_in):
    stand_in("print('no such device'); raise SystemExit(3)")
    with pytest.raises(HostError, match=r"(?s)status 3.*no such device"):
        ComfyHost().start()


def test_a_host_that_never_answers_is_stopped(stand_in):
    stand_in("import time; print('thinking', flush=True); time.sleep(600)")
    host = ComfyHost()
    with pytest.raises(HostError, match=r"(?s)did not answer within 2 s.*thinking"):
        host.start(timeout=2)
    assert host.wait() != 0


def test_a_model_file_that_does_not_exist_is_named(stand_in, tmp_path):
    stand_in("")
    with pytest.raises(HostError, match="missing.safetensors does not exist"):
        ComfyHost(models={"vae": [tmp_path / "missing.safetensors"]}).start()


def test_only_flags_that_the_host_knows_are_passed(stand_in):
    root = stand_in("import sys; print(sys.argv[1:]); raise SystemExit(1)")
    host = ComfyHost()
    with pytest.raises(HostError, match="--disable-api-nodes") as caught:
        host.start()
    assert "--database-url" not in str(caught.value)
    assert str(root) in str(caught.value)
