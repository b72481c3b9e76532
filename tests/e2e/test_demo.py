"""`make demo`, less the setting up."""

import subprocess
import sys
from pathlib import Path

from comfy_host import REPOSITORY
from demo import PROMPTS, SEED
from PIL import Image
from read_picture import read_picture
from tiny_workflow import text_to_image


def test_the_demo_ends_with_the_paths_of_its_pictures_and_the_contact_sheet_last(tmp_path):
    command = [sys.executable, REPOSITORY / "tools" / "demo.py", "--output", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    paths = [Path(line) for line in run.stdout.splitlines()[-17:]]
    assert all(path.parent == tmp_path for path in paths)
    assert {Image.open(path).size for path in paths[:16]} == {(128, 128)}
    assert paths[-1].name == "contact_sheet.png"
    assert Image.open(paths[-1]).width > 4 * 128


def test_the_demo_prompts_are_drawn_right_at_nf4(client):
    for prompt in PROMPTS:
        (picture,) = client.run(text_to_image(prompt, SEED, precision="nf4")).images
        assert "a {1} {0}".format(*read_picture(picture)) == prompt
