"""Rows spread over a local Ray cluster of two CPU workers, one of which is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfy_host import host_root
from PIL import Image

ray_cluster = pytest.importorskip("ray.cluster_utils", reason="ray has no wheel for this Python")

SCRIPT = Path(sys.executable).with_name("quantflux")
COLOURS = [40, 13, 80, 120]


@pytest.fixture(scope="module")
def cluster():
    """Two machines, as far as Ray can tell, with room for one host each."""
    cluster = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        cluster.add_node(num_cpus=1, num_gpus=0)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def workflow(tmp_path):
    inputs = {"colour": 0, "seconds": 1.5, "folder": str(tmp_path / "drawn")}
    graph = {
        "draw": {"class_type": "SlowColour", "inputs": inputs},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["draw", 0], "filename_prefix": "colour"}},
    }
    (tmp_path / "drawn").mkdir()
    (tmp_path / "workflow.json").write_text(json.dumps(graph))
    (tmp_path / "rows.csv").write_text("draw.colour\n" + "\n".join(map(str, COLOURS)))
    packs = tmp_path / "base" / "custom_nodes"
    packs.mkdir(parents=True)
    (packs / "slow_colour.py").symlink_to(Path(__file__).with_name("slow_colour.py"))
    return tmp_path / "workflow.json"


@pytest.mark.parametrize(("address", "message"), [("127.0.0.1:1", "nothing answers there"), ("auto", "Ray")])
def test_an_address_without_a_cluster_is_named(workflow, address, message, tmp_path):
    command = [SCRIPT, "run", workflow, "--ray", address]
    # Ray looks for a cluster of this machine in its temporary folder, where that of another test may be.
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert ended.returncode == 2
    assert f"--ray {address}" in ended.stderr
    assert message in ended.stderr


def test_a_cluster_without_gpus_tells_how_to_use_cpus(cluster, workflow):
    command = [SCRIPT, "run", workflow, "--ray", cluster.address]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 2
    assert "the Ray cluster has 0 GPUs" in ended.stderr
    assert "--ray-gpus 0 for CPUs" in ended.stderr


def test_a_killed_worker_costs_no_row_and_results_keep_their_order(cluster, workflow, tmp_path):
    command = [SCRIPT, "run", workflow, "--prompts", tmp_path / "rows.csv", "--ray", cluster.address]
    command += ["--ray-gpus", "0", "--ray-hosts", "2", "--retries", "1", "--comfyui", host_root()]
    command += ["--output", tmp_path / "pictures", "--", "--cpu", "--base-directory", tmp_path / "base"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        host, worker, _ = until(lambda: next((note for note in drawing(tmp_path) if note[2] == COLOURS[0]), None))
        os.kill(worker, signal.SIGKILL)
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert "row 2 of 4: SlowColour (node draw): 13 is no colour" in errors
    assert "quantflux: 1 of 4 rows failed: 2" in errors.splitlines()
    assert process.returncode == 1
    assert [Path(line).name[:5] for line in output.splitlines()] == ["0001_", "0003_", "0004_"]
    drawn = [Image.open(line).convert("RGB").getpixel((0, 0))[0] for line in output.splitlines()]
    assert drawn == [colour for colour in COLOURS if colour != 13]
    assert not Path(f"/proc/{host}").exists()
    # The killed one drew the first colour only; 13 was tried on the other one and on the one that took its place.
    assert [note[2] for note in drawing(tmp_path) if note[0] == host] == [COLOURS[0]]
    assert len({note[0] for note in drawing(tmp_path) if note[2] == 13}) == 2
    assert len({note[0] for note in drawing(tmp_path)}) == 3


def drawing(tmp_path):
    """Which host, of which worker, has begun which colour, by the notes of the node."""
    return [tuple(map(int, note.name.split("."))) for note in sorted((tmp_path / "drawn").iterdir())]


def until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found
