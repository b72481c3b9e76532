"""What only plain weights can do is refused with a message that says what to do instead, and harms nothing."""

import re

import loras
import pytest
from comfy_client import PromptFailed
from read_picture import pixel_hash
from stock_models import Studio, node, small_graph

NAMED = re.compile(r"[Uu]se ((?:[A-Z]\w+)(?: [A-Z]\w+)*)|(?:[Pp]ut|or put) an? (\w+(?: [A-Z]\w+)*) node")


@pytest.fixture(scope="module", autouse=True)
def lora(host, tmp_path_factory):
    Studio(host, tmp_path_factory.mktemp("stock_nodes")).add("loras", "hook.safetensors", loras.peft())


def merging(graph):
    graph["other"] = {**graph["transformer"]}
    graph["merge"] = node("ModelMergeSimple", model1=["transformer", 0], model2=["other", 0], ratio=0.5)
    graph["sampler"]["inputs"]["model"] = ["merge", 0]


def merging_clips(graph):
    graph["merge"] = node("CLIPMergeSimple", clip1=["text_encoders", 0], clip2=["text_encoders", 0], ratio=0.5)
    graph["prompt"]["inputs"]["clip"] = ["merge", 0]


def saving_model(graph):
    graph["stock save"] = node("ModelSave", model=["transformer", 0], filename_prefix="refused/model")


def saving_clip(graph):
    graph["stock save"] = node("CLIPSave", clip=["text_encoders", 0], filename_prefix="refused/clip")


def saving_checkpoint(graph):
    graph["stock save"] = node(
        "CheckpointSave", model=["transformer", 0], clip=["text_encoders", 0], vae=["vae", 0],
        filename_prefix="refused/checkpoint",
    )  # fmt: skip


def hooking_clip(graph):
    graph["hook"] = node("CreateHookLora", lora_name="hook.safetensors", strength_model=1.0, strength_clip=1.0)
    graph["hooked"] = node(
        "SetClipHooks", clip=["text_encoders", 0], apply_to_conds=True, schedule_clip=False, hooks=["hook", 0]
    )
    graph["prompt"]["inputs"]["clip"] = ["hooked", 0]


def hooking_model(graph):
    graph["hook"] = node("CreateHookLoraModelOnly", lora_name="hook.safetensors", strength_model=1.0)
    graph["hooked"] = node(
        "ConditioningSetProperties", cond_NEW=["guidance", 0], strength=1.0, set_cond_area="default", hooks=["hook", 0]
    )
    graph["sampler"]["inputs"]["positive"] = ["hooked", 0]


REFUSED = {
    merging: "merged into another model",
    merging_clips: "merged into another model",
    saving_model: "saved by the host's nodes",
    saving_clip: "saved by the host's nodes",
    saving_checkpoint: "saved by the host's nodes",
    hooking_clip: "changed by hooks while sampling",
    hooking_model: "changed by hooks while sampling",
}


@pytest.mark.parametrize(("what", "words"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_it_is_refused_with_what_to_do_instead_and_the_next_prompt_works(host, what, words):
    fine, refused = small_graph(), small_graph()
    before = pixel_hash(host.client.run(fine).images[0])
    what(refused)
    with pytest.raises(PromptFailed, match=words) as failure:
        host.client.run(refused)
    assert failure.value.exception_type.endswith("PackedWeightsError")
    known = host.client.get("/object_info")
    known = set(known) | {info["display_name"] for info in known.values()}
    named = {name for pair in NAMED.findall(str(failure.value)) for name in pair if name}
    assert named and named <= known
    assert not list((host.base / "output" / "refused").glob("*"))
    # another seed in between, so that nothing of the first picture comes from the host's cache
    host.client.run(small_graph(seed=6))
    assert pixel_hash(host.client.run(fine).images[0]) == before
