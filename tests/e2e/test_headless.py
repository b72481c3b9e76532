"""`quantflux run`, the console script, against the real server and on a host of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from quantflux.cli.graph import to_graph
from read_picture import pixel_hash
from tiny_workflow import WORKFLOWS, load_workflow, text_to_image

SCRIPT = Path(sys.executable).with_name("quantflux")
TEMPLATES = WORKFLOWS.parent
TINY = TEMPLATES / "tiny_flux_text_to_image.json"
TINY_API = WORKFLOWS / "tiny_flux_text_to_image.json"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


@pytest.fixture
def quantflux(host, tmp_path):
    """A function that runs the script on the shared host, and returns how it ended."""

    def run(*arguments, server=("--server", host.client.url), **variables):
        command = [SCRIPT, "run", *arguments, "--output", tmp_path / "pictures", *server]
        env = {**os.environ, **variables}
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=env)

    return run


def tree(graph, node_id):
    """A node with all that leads to it, whatever the ids."""
    node = graph[node_id]
    return node["class_type"], {
        name: (tree(graph, value[0]), value[1]) if isinstance(value, list) else value
        for name, value in node["inputs"].items()
    }


def ends(graph):
    """The nodes whose outputs go nowhere."""
    used = {value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)}
    return sorted(set(graph) - used)


def whole(graph):
    """All that a graph makes, whatever the ids."""
    return sorted((tree(graph, end) for end in ends(graph)), key=repr)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_converts_to_its_workflow_in_api_format(client, name):
    graph = load_workflow(name)
    converted = to_graph(json.loads((TEMPLATES / f"{name}.json").read_text()), client.get("/object_info"))
    assert len(converted) == len(graph)
    assert whole(converted) == whole(graph)


def test_a_canvas_file_gives_the_picture_of_its_graph_in_the_output_folder(quantflux, client, tmp_path):
    ended = quantflux(TINY, "--set", "Prompt.text=a blue star", "--set", "KSampler.seed=5", "--set", "9.steps=3")
    assert (ended.returncode, ended.stderr) == (0, "")
    path = Path(ended.stdout.splitlines()[-1])
    assert list((tmp_path / "pictures").iterdir()) == [path]
    graph = text_to_image("a blue star", seed=5)
    graph["sampler"]["inputs"]["steps"] = 3
    assert pixel_hash(Image.open(path).convert("RGB")) == pixel_hash(client.run(graph).images[0])


def test_a_report_is_printed(quantflux, tmp_path):
    graph = {
        "plan": {
            "class_type": "QuantFluxMemoryReport",
            "inputs": {"vae": ["vae", 0]},
            "_meta": {"title": "Report"},
        },
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "taef_tiny.safetensors"}},
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["plan", 0]}},
    }
    (tmp_path / "report.json").write_text(json.dumps(graph))
    ended = quantflux("report.json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("VAE") == ended.stdout.partition("\n")[2].count("VAE") > 0


def test_an_address_as_the_canvas_has_it_serves_past_a_proxy(quantflux, host, tmp_path):
    address = f"{host.client.url}/?template=tiny_flux_text_to_image&source=quantflux#canvas"
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:1") | {"no_proxy": "", "NO_PROXY": ""}
    ended = quantflux(TINY_API, "--set", "sampler.steps=1", server=("--server", address), **proxies)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_letters_that_the_output_lacks_are_escaped(quantflux, tmp_path):
    graph = {
        "picture": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "größe"}},
    }
    (tmp_path / "picture.json").write_text(json.dumps(graph))
    ended = quantflux("picture.json", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    (path,) = (tmp_path / "pictures").iterdir()
    assert ended.stdout == str(path).replace("ö", "\\xf6").replace("ß", "\\xdf") + "\n"


def test_a_node_that_fails_is_named_and_the_status_is_1(quantflux, tmp_path):
    ended = quantflux(TINY, "--set", "Load Quantized Transformer.hub_repo=no such repo", "--set", "KSampler.steps=1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("quantflux: Load Quantized Transformer (QuantFluxLoadTransformer, node 3): ")
    assert "no such repo" in ended.stderr
    assert not list((tmp_path / "pictures").iterdir())


def test_a_refused_value_is_named_at_its_node(quantflux):
    ended = quantflux(TINY_API, "--set", "sampler.steps=-1")
    assert ended.returncode == 1
    assert "KSampler (node sampler): Value -1 smaller than min of 1: steps" in ended.stderr


def test_an_input_that_is_not_there_ends_before_anything_runs(quantflux, tmp_path):
    ended = quantflux(TINY_API, "--set", "sampler.sed=1")
    assert ended.returncode == 2
    assert "KSampler (node sampler) has no input sed. It has: model, seed, steps" in ended.stderr
    assert not (tmp_path / "pictures").exists()


def test_a_batch_goes_on_after_a_row_that_fails(quantflux, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt.text,sampler.steps\na red circle,0\na blue star,2\n")
    ended = quantflux(TINY_API, "--prompts", "prompts.csv", "--set", "sampler.seed=6")
    assert ended.returncode == 1
    assert "row 1 of 2: " in ended.stderr
    assert ended.stderr.splitlines()[-1] == "quantflux: 1 of 2 rows failed: 1"
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name.startswith("0002_tiny_flux")


def test_ctrl_c_interrupts_the_server(client, host, tmp_path):
    arguments = ["--set", "sampler.steps=5000", "--set", "sampler.seed=7", "--server", host.client.url]
    process = subprocess.Popen([SCRIPT, "run", TINY_API, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until(lambda: client.get("/queue")["queue_running"])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "quantflux: interrupted\n"
    until(lambda: not client.get("/queue")["queue_running"])
    (last,) = client.get("/history?max_items=1").values()
    assert last["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_run_that_takes_too_long_is_stopped(quantflux, client):
    ended = quantflux(TINY_API, "--set", "sampler.steps=5000", "--set", "sampler.seed=8", "--timeout", "2")
    assert ended.returncode == 1
    assert ended.stderr == "quantflux: the workflow did not end within 2 s\n"
    until(lambda: not client.get("/queue")["queue_running"])


def test_without_a_server_it_starts_a_host_and_stops_it(quantflux, host):
    flags = ["--", "--base-directory", host.base, "--disable-all-custom-nodes", "--whitelist-custom-nodes", "quantflux"]
    ended = quantflux(TINY, "--set", "KSampler.steps=1", server=["--comfyui", host.root, *flags])
    assert ended.returncode == 0, ended.stderr
    assert Image.open(ended.stdout.splitlines()[-1]).size == (128, 128)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
