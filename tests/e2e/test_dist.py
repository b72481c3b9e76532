"""The archive that the registry would publish, unpacked into a fresh host: it is all that the nodes need."""

import shutil
import subprocess
import zipfile

import pytest
import requests
from build_archive import PackError, pack
from comfy_client import PromptFailed
from comfy_host import PACK_NAME, REPOSITORY, ComfyHost
from read_picture import read_picture
from shape_scenes import prompts
from tiny_workflow import MODELS, text_to_image

LARGEST = 1_000_000  # bytes
CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]


def git(*command: str, root=REPOSITORY) -> str:
    return subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Made from a copy of the checkout in which all files that git does not ignore are tracked, committed or not."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("packs what git tracks, and this is no git checkout")
    copy = tmp_path_factory.mktemp("checkout")
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, copy / name)
    git("init", "--quiet", root=copy)
    git("add", "--all", "--force", root=copy)
    return pack(copy, tmp_path_factory.mktemp("dist"))


def test_it_is_small_and_holds_what_users_open_and_nothing_else(archive):
    assert archive.stat().st_size < LARGEST
    names = set(zipfile.ZipFile(archive).namelist())
    assert names > {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "CHANGELOG.md"}
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops == {"nodes", "quant_core", "cli", "web", "locales", "workflows", "docs"}


def test_a_host_with_the_archive_draws_what_the_prompt_says(archive, tmp_path):
    folder = tmp_path / "custom_nodes" / PACK_NAME
    zipfile.ZipFile(archive).extractall(folder)
    with ComfyHost(base=tmp_path, models=MODELS, with_pack=False) as host:
        (picture,) = host.client.run(text_to_image(CAPTION)).images
        # help pages and templates come with it
        help_page = requests.get(f"{host.client.url}/extensions/{PACK_NAME}/docs/QuantFluxConfig.md", timeout=60)
        assert help_page.content == (REPOSITORY / "web" / "docs" / "QuantFluxConfig.md").read_bytes()
        assert "tiny_flux_text_to_image" in host.client.get("/workflow_templates")[PACK_NAME]
        graph = text_to_image(CAPTION)
        graph["transformer"]["inputs"]["hub_repo"] = "no repository's name"
        with pytest.raises(PromptFailed) as refused:
            host.client.run(graph)
    assert read_picture(picture) == (SHAPE, COLOUR)
    # that, and nothing of this checkout, is what ran
    assert str(folder) in refused.value.traceback and str(REPOSITORY / "nodes") not in refused.value.traceback


def test_a_folder_without_git_is_refused(tmp_path):
    shutil.copyfile(REPOSITORY / "pyproject.toml", tmp_path / "pyproject.toml")
    with pytest.raises(PackError, match="git"):
        pack(tmp_path, tmp_path / "dist")
