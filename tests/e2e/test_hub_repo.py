"""A transformer and a T5 from the Hub, as files and as a pipeline's folders, in a host whose Hub is a local one."""

import json

import pytest
import torch
from comfy_client import PromptFailed
from comfy_host import ComfyHost
from hub_server import running_hub
from native_names import swap_halves
from quantflux.quant_core.flux.names import NORMS, SWAPPED_HALVES, diffusers_parts
from read_picture import pixel_hash
from safetensors.torch import load_file, save
from template_models import HUB_REPO, add_stand_ins, packed_pipeline, small
from tiny_workflow import ASSETS, MODELS, text_to_image

CAPTION = "a large blue square in the center on a white background"


@pytest.fixture(scope="module")
def client_of_a_local_hub(tmp_path_factory):
    with running_hub() as hub, pytest.MonkeyPatch.context() as environment:
        hub.add("owner/flux", {"transformer.safetensors": (ASSETS / "flux_tiny.safetensors").read_bytes()})
        hub.add("owner/t5", {"encoder.safetensors": (ASSETS / "t5_tiny.safetensors").read_bytes()})
        hub.add("owner/pipeline", pipeline())
        hub.add(HUB_REPO, packed_pipeline())
        environment.setenv("HF_ENDPOINT", hub.url)
        environment.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        environment.setenv("HF_HUB_DISABLE_XET", "1")
        environment.setenv("NO_PROXY", "127.0.0.1")
        with ComfyHost(models=MODELS) as host:
            add_stand_ins(host, tmp_path_factory.mktemp("templates"))
            yield host.client


def pipeline() -> dict[str, bytes]:
    """The small FLUX and T5 in the layout of diffusers, each in two shards."""
    transformer = in_diffusers_names(load_file(ASSETS / "flux_tiny.safetensors"))
    encoder = load_file(ASSETS / "t5_tiny.safetensors")
    return {
        "model_index.json": b'{"_class_name": "FluxPipeline"}',
        **sharded("transformer/diffusion_pytorch_model", transformer, {"_class_name": "FluxTransformer2DModel"}),
        **sharded("text_encoder_2/model", encoder, {"model_type": "t5", "architectures": ["T5EncoderModel"]}),
    }


def in_diffusers_names(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    hidden = native["img_in.weight"].shape[0]
    named = {}
    for name, tensor in native.items():
        module, _, leaf = name.rpartition(".")
        parts = diffusers_parts(module)
        if not parts:
            number = name.split(".")[1]
            named[NORMS[name.replace(f".{number}.", ".{}.", 1)].format(number)] = tensor
            continue
        # of the modules that are stacked, only the last may have another number of rows
        rows = [hidden] * (len(parts) - 1)
        pieces = tensor.split([*rows, len(tensor) - sum(rows)])
        for part, piece in zip(parts, pieces, strict=True):
            named[f"{part}.{leaf}"] = swap_halves(piece) if module in SWAPPED_HALVES else piece
    return named


def sharded(stem: str, tensors: dict[str, torch.Tensor], config: dict) -> dict[str, bytes]:
    folder, _, name = stem.partition("/")
    names = sorted(tensors)
    files, weight_map = {}, {}
    for i in range(2):
        shard = f"{name}-{i + 1:05}-of-00002.safetensors"
        files[f"{folder}/{shard}"] = save({n: tensors[n].contiguous() for n in names[i::2]})
        weight_map |= dict.fromkeys(names[i::2], shard)
    files[f"{stem}.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files | {f"{folder}/config.json": json.dumps(config).encode()}


def graph(transformer: str, t5: str):
    workflow = text_to_image(CAPTION)
    workflow["transformer"]["inputs"]["hub_repo"] = transformer
    workflow["text_encoders"]["inputs"]["hub_repo"] = t5
    workflow["sampler"]["inputs"]["steps"] = 4
    return workflow


@pytest.mark.parametrize(
    ("transformer", "t5"),
    [("owner/flux", "owner/t5"), ("owner/pipeline", "owner/pipeline"), ("owner/pipeline/transformer@main", "")],
)
def test_models_from_the_hub_draw_the_picture_of_the_same_local_files(client_of_a_local_hub, transformer, t5):
    local = client_of_a_local_hub.run(graph("", "")).images[0]
    from_hub = client_of_a_local_hub.run(graph(transformer, t5)).images[0]
    assert pixel_hash(from_hub) == pixel_hash(local)


def test_the_template_draws_with_the_packed_models_of_its_repository(client_of_a_local_hub):
    finished = client_of_a_local_hub.run(small("flux_dev_from_hub", CAPTION, 4))
    for loader in ("transformer", "text_encoders"):
        assert finished.outputs[loader]["quantflux"][0]["precision"] == "nf4"
    # the same nodes with the 16-bit files, of which the same layers are packed
    local = small("flux_dev_8bit", CAPTION, 4)
    local["config"]["inputs"] |= {"precision": "nf4", "skip_modules": "wo"}
    assert pixel_hash(finished.images[0]) == pixel_hash(client_of_a_local_hub.run(local).images[0])


def test_a_repository_that_is_not_there_is_named_and_the_next_prompt_works(client_of_a_local_hub):
    with pytest.raises(PromptFailed, match="owner/nowhere: does not exist, or is private"):
        client_of_a_local_hub.run(graph("owner/nowhere", ""))
    assert client_of_a_local_hub.run(graph("owner/flux", "")).images
