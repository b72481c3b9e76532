"""The cancel button in a real host: what takes long moves a bar, stops within 2 s, leaves nothing, and runs again."""

import psutil
import pytest
import torch
from cancelling import cancel, repeated_tensors
from comfy_client import TRIVIAL_GRAPH
from comfy_host import ComfyHost, stop_on_signals
from hub_server import running_hub
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.t5 import T5Config
from safetensors.torch import load_file, save, save_file
from stock_models import node
from tiny_workflow import ASSETS, MODELS, text_to_image

SECONDS = 2.0
MIB = 2**20
# 0.2 and 0.3 GB at 16 bit
FLUX = FluxConfig(
    in_channels=64, out_channels=64, hidden_size=768, num_heads=6, mlp_size=3072, context_in_dim=128, vec_in_dim=64,
    depth=4, depth_single_blocks=4, guidance_embed=True,
)  # fmt: skip
T5 = T5Config(vocab_size=32128, d_model=1024, d_ff=4096, d_kv=64, num_heads=16, num_layers=8)
LARGE_FLUX, LARGE_T5 = "large_flux.safetensors", "large_t5.safetensors"
CAPTION = "a large red circle on a white background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cancel")
    for name, sizes in ((LARGE_FLUX, FLUX), (LARGE_T5, T5)):
        save_file(repeated_tensors(sizes.tensor_shapes()), folder / name)
    yield folder
    for name in (LARGE_FLUX, LARGE_T5):
        (folder / name).unlink()


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def host(folder, hub):
    """A host of its own, which gives memory back as soon as it is freed, and whose Hub is the local one."""
    stop_on_signals()
    models = {
        "diffusion_models": [*MODELS["diffusion_models"], folder / LARGE_FLUX],
        "text_encoders": [*MODELS["text_encoders"], folder / LARGE_T5],
        "vae": MODELS["vae"],
    }
    settings = {
        "MALLOC_MMAP_THRESHOLD_": str(MIB // 2),
        "MALLOC_TRIM_THRESHOLD_": str(MIB // 2),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        with ComfyHost(models=models) as host:
            host.client.run(loading("flux_tiny.safetensors"))  # so that all libraries are there
            yield host


@pytest.fixture
def client(host):
    return host.client


@pytest.fixture
def left_behind(host):
    """A function that tells how many bytes more than before the host has of its own, mapped files not counted."""

    def own() -> int:
        host.client.free()
        host.client.run(TRIVIAL_GRAPH)  # the host collects its garbage before this one, not before free returns
        memory = psutil.Process(host.pid).memory_info()
        return memory.rss - memory.shared

    before = own()
    return lambda: own() - before


def loading(model: str = LARGE_FLUX, **config) -> dict:
    """A transformer, and a node that wants it."""
    whole = text_to_image(CAPTION, **config)
    graph = {name: whole[name] for name in ("config", "transformer")}
    graph["transformer"]["inputs"]["model_name"] = model
    graph["wants"] = node("QuantFluxMemoryReport", model=["transformer", 0])
    return graph


def text_encoding(**config) -> dict:
    """A T5, and a node that wants it."""
    whole = text_to_image(CAPTION, **config)
    graph = {name: whole[name] for name in ("config", "text_encoders")}
    graph["text_encoders"]["inputs"]["t5_name"] = LARGE_T5
    graph["wants"] = node("QuantFluxMemoryReport", clip=["text_encoders", 0])
    return graph


@pytest.mark.parametrize(
    ("loader", "make"), [("transformer", loading), ("text_encoders", text_encoding)], ids=["FLUX", "T5"]
)
def test_loading_and_quantizing(client, left_behind, loader, make):
    assert cancel(client, make(precision="fp4"), loader).seconds < SECONDS
    graph = make(precision="int8")
    # 20 MB and more are packed by then
    assert cancel(client, graph, loader, values=50).seconds < SECONDS
    assert left_behind() < 10 * MIB
    assert client.run(graph).outputs[loader]["quantflux"][0]["precision"] == "int8"


def test_choosing_precisions_by_the_weights(client):
    """What a budget asks of a model of other blocks than FLUX.1-dev's, in the loader and in the plan."""
    graph = loading(skip_modules="auto:0.1")
    assert cancel(client, graph, "transformer").seconds < SECONDS
    sizes = {"width": 128, "height": 128, "batch_size": 1}
    graph["wants"] = node(
        "QuantFluxPlan", model_name=LARGE_FLUX, t5_name=LARGE_T5, config=["config", 0], **sizes
    )  # fmt: skip
    del graph["transformer"]
    assert cancel(client, graph, "wants").seconds < SECONDS
    assert "nf4 and better within 0.1 GiB" in client.run(graph).outputs["wants"]["text"][0]


def test_quantizing_a_loaded_model(client, left_behind):
    graph = loading(precision="none")
    graph["as int8"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | {"precision": "int8"}))
    graph["quantized"] = node("QuantFluxQuantize", model=["transformer", 0], config=["as int8", 0])
    graph["wants"]["inputs"]["model"] = ["quantized", 0]
    assert cancel(client, graph, "quantized").seconds < SECONDS
    assert cancel(client, graph, "quantized", values=40).seconds < SECONDS
    assert left_behind() < 10 * MIB
    assert client.run(graph).outputs["quantized"]["text"][0].startswith("int8")


def test_dequantizing(client, left_behind):
    graph = loading(precision="int8")
    graph["plain"] = node("QuantFluxDequantize", model=["transformer", 0], dtype="bfloat16")
    graph["wants"]["inputs"]["model"] = ["plain", 0]
    assert cancel(client, graph, "plain").seconds < SECONDS
    assert cancel(client, graph, "plain", values=30).seconds < SECONDS
    assert left_behind() < 10 * MIB
    assert client.run(graph).outputs["plain"]["quantflux"][0]["bytes"] > 200_000_000


@pytest.mark.parametrize("format", ["single file", "diffusers folder"])
def test_saving(client, host, format):
    def files():
        return {path for path in (host.base / "output").rglob("*") if path.is_file()}

    graph = loading(precision="none")
    prefix = f"cancelled/{format.replace(' ', '-')}"
    graph["wants"] = node("QuantFluxSave", model=["transformer", 0], filename_prefix=prefix, format=format)
    before = files()
    for values in (2, 20):
        assert cancel(client, graph, "wants", values).seconds < SECONDS
        assert files() == before
    (figures,) = client.run(graph).outputs["wants"]["quantflux"]
    # no number was used up
    assert figures["path"].startswith(f"diffusion_models/{prefix}_00001_")
    written = files() - before
    assert sum(path.stat().st_size for path in written) == figures["bytes"] > 200_000_000
    for path in written:
        path.unlink()


def test_a_quality_report(client):
    graph = text_to_image(CAPTION, precision="int8")
    for after in ("sampler", "decode", "save", "vae"):
        del graph[after]
    graph["plain"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | {"precision": "none"}))
    graph["reference"] = node("QuantFluxLoadTransformer", model_name="flux_tiny.safetensors", config=["plain", 0])
    models = {"reference": ["reference", 0], "model": ["transformer", 0]}
    graph["wants"] = node(
        "QuantFluxQuality", positive=["guidance", 0], latent_image=["latent", 0], steps=12, seed=5, **models
    )
    # on the way of the reference, and on the model's own
    for values in (2, 28):
        assert cancel(client, graph, "wants", values).seconds < SECONDS
    graph["wants"]["inputs"]["steps"] = 3
    assert "3 euler steps" in client.run(graph).outputs["wants"]["text"][0]


def compiled(regional: bool, backend: str = "aot_eager") -> dict:
    graph = text_to_image(CAPTION, precision="nf4")
    settings = {"backend": backend, "mode": "default", "regional": regional, "fullgraph": False, "dynamic": "auto"}
    graph["compile"] = node("QuantFluxCompile", model=["transformer", 0], **settings)
    graph["sampler"]["inputs"] |= {"model": ["compile", 0], "steps": 2}
    return graph


def test_compiling_stops(client):
    whole = cancel(client, compiled(regional=False), "sampler", values=1)
    assert whole.seen == [0.0] and whole.seconds < SECONDS
    graph = compiled(regional=True, backend="eager")
    blocks = cancel(client, graph, "sampler", values=1)
    assert blocks.seen == [0.0] and blocks.seconds < SECONDS
    seen = []
    finished = client.run(graph, on_progress=lambda name, done, total: seen.append((name, done, total)))
    assert len(finished.images) == 1
    moves = list(dict.fromkeys(done / total for name, done, total in seen if name == "sampler"))
    # by block in the first step, then by step
    assert len(moves) > 4 and moves[-1] == 1.0


@pytest.fixture
def from_hub(hub):
    """A workflow that loads the small FLUX from the Hub, where its file has 40 MB more."""
    tensors = load_file(ASSETS / "flux_tiny.safetensors")
    hub.add(
        "owner/flux", {"flux.safetensors": save(tensors | {"more.weight": torch.zeros(40 * MIB, dtype=torch.uint8)})}
    )
    graph = loading("(from hub_repo)")
    graph["transformer"]["inputs"]["hub_repo"] = "owner/flux"
    return graph


def test_downloading(client, hub, folder, from_hub):
    hub.pause = 0.005
    try:
        assert cancel(client, from_hub, "transformer").seconds < SECONDS
    finally:
        hub.pause = 0.0
    cached = [path for path in (folder / "hub").rglob("*") if path.is_file() and path.stat().st_size > MIB]
    # what huggingface_hub goes on with
    assert all(path.suffix == ".incomplete" for path in cached)
    assert client.run(from_hub).outputs["transformer"]["quantflux"][0]["precision"] == "nf4"


def test_asking_a_hub_that_does_not_answer(client, hub, from_hub):
    hub.on_request = lambda path: hub.resumed.wait()
    from_hub["transformer"]["inputs"]["hub_repo"] = "owner/flux@main"
    try:
        assert cancel(client, from_hub, "transformer", values=1).seconds < SECONDS
    finally:
        hub.on_request = lambda path: None
        hub.resumed.set()
    assert client.run(from_hub).outputs["transformer"]["quantflux"][0]["precision"] == "nf4"
