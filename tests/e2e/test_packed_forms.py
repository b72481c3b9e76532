"""The picture from each packed form is, bit for bit, the one from quantizing on load with the same settings."""

import diffusers
import pytest
import transformers
from format_files import flux_folder_by_diffusers, pack_4bit, prefixed, t5_folder_by_transformers
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.export import provenance_of, save_diffusers_folder
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from read_picture import pixel_hash
from safetensors.torch import load_file, save_file
from shape_scenes import prompts
from tiny_workflow import ASSETS, text_to_image

CAPTION, _, _ = prompts(1, seed=11)[0]
FLUX = ASSETS / "flux_tiny.safetensors"
T5 = ASSETS / "t5_tiny.safetensors"
# transformers leaves wo at 16 bit
AS_TRANSFORMERS = {"skip_modules": "wo"}


def picture(client, *, transformer: str | None = None, t5: str | None = None, **config):
    """The hash of a picture, and the precision of what was loaded for it.

    A named file or folder is loaded as it is, without the config.
    """
    client.free()  # a loader whose result is cached has no output
    graph = text_to_image(CAPTION, **config)
    graph["sampler"]["inputs"]["steps"] = 4
    for node_id, widget, name in (("transformer", "model_name", transformer), ("text_encoders", "t5_name", t5)):
        if name:
            del graph[node_id]["inputs"]["config"]
            graph[node_id]["inputs"][widget] = name
    finished = client.run(graph)
    loaded = finished.outputs["text_encoders" if t5 else "transformer"]
    return pixel_hash(finished.images[0]), loaded["quantflux"][0]["precision"]


@pytest.fixture(scope="module")
def linears():
    source = flux_source(open_checkpoint(FLUX), QuantConfig("none"))
    return set(source.model.linear_shapes())


@pytest.fixture(scope="module")
def diffusers_model(tmp_path_factory):
    """The small FLUX in diffusers' class."""
    folder = tmp_path_factory.mktemp("diffusers") / "flux"
    source = flux_source(open_checkpoint(FLUX), QuantConfig("none"))
    save_diffusers_folder(folder, load(source), provenance_of(source))
    return diffusers.FluxTransformer2DModel.from_pretrained(folder, torch_dtype="auto")


@pytest.fixture(scope="module")
def transformers_t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers") / "t5"
    source = t5_source(open_checkpoint(T5), QuantConfig("none"))
    save_diffusers_folder(folder, load(source), provenance_of(source))
    return transformers.T5EncoderModel.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize(
    "config",
    [
        {"precision": "nf4"},
        {"precision": "nf4", "double_quant": True},
        {"precision": "fp4", "blocksize": 128},
    ],
    ids=lambda config: " ".join(map(str, config.values())),
)
def test_a_single_file_packed_by_bitsandbytes(client, host, linears, tmp_path, config):
    recipe = {"quant_type" if key == "precision" else key: value for key, value in config.items()}
    packed, _ = pack_4bit(load_file(FLUX), linears, **recipe)
    path = tmp_path / f"packed_{'_'.join(map(str, config.values()))}.safetensors"
    save_file(packed, path)
    host.add_model("diffusion_models", path)
    expected, _ = picture(client, **config)
    assert picture(client, transformer=path.name, **config) == (expected, config["precision"])


def test_an_all_in_one_checkpoint_that_is_packed(client, host, linears, tmp_path):
    packed, _ = pack_4bit(load_file(FLUX), linears)
    whole = prefixed("model.diffusion_model.", packed) | prefixed("text_encoders.t5xxl.transformer.", load_file(T5))
    path = tmp_path / "all_in_one.safetensors"
    save_file(whole, path)
    host.add_model("checkpoints", path)
    expected, _ = picture(client, precision="nf4")
    assert picture(client, transformer=path.name, precision="nf4") == (expected, "nf4")


@pytest.mark.parametrize("precision", ["nf4", "fp4", "int8"])
def test_a_folder_packed_by_diffusers(client, host, diffusers_model, tmp_path, precision):
    folder = tmp_path / f"by diffusers {precision}"
    flux_folder_by_diffusers(diffusers_model, QuantConfig(precision), folder, max_shard_size="2MB")
    host.add_model("diffusers", folder)
    expected, _ = picture(client, precision=precision)
    assert picture(client, transformer=folder.name, precision=precision) == (expected, precision)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_t5_folder_packed_by_transformers(client, host, transformers_t5, tmp_path, precision):
    folder = tmp_path / f"t5 by transformers {precision}"
    t5_folder_by_transformers(transformers_t5, QuantConfig(precision), folder)
    host.add_model("text_encoders", folder)
    expected, _ = picture(client, precision=precision, **AS_TRANSFORMERS)
    assert picture(client, t5=folder.name, precision=precision, **AS_TRANSFORMERS) == (expected, precision)
