"""Dequantize and Memory Report in workflows of a real host."""

import loras
import pytest
from comfy_client import PromptFailed
from read_picture import pixel_hash, read_picture
from safetensors.torch import save_file
from shape_scenes import prompts
from stock_models import node
from tiny_workflow import text_to_image

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]


def dequantizing(**config) -> dict:
    """The text-to-image workflow, with Dequantize behind both loaders."""
    graph = text_to_image(CAPTION, **config)
    graph["plain"] = node("QuantFluxDequantize", model=["transformer", 0], clip=["text_encoders", 0], dtype="auto")
    graph["sampler"]["inputs"]["model"] = ["plain", 0]
    for prompt in ("prompt", "negative"):
        graph[prompt]["inputs"]["clip"] = ["plain", 1]
    return graph


def test_dequantized_models_draw_what_the_prompt_says(client):
    client.free()
    finished = client.run(dequantizing(precision="nf4"))
    assert read_picture(finished.images[0]) == (SHAPE, COLOUR)
    model, clip = finished.outputs["plain"]["quantflux"]
    assert model["bytes"] > 2 * model["bytes_before"] and clip["bytes"] > clip["bytes_before"]


def test_a_merge_of_dequantized_models_draws_it_too(client):
    graph = dequantizing(precision="nf4")
    graph["other_config"] = {**graph["config"], "inputs": graph["config"]["inputs"] | {"precision": "int8"}}
    graph["other"] = {
        **graph["transformer"], "inputs": graph["transformer"]["inputs"] | {"config": ["other_config", 0]}
    }  # fmt: skip
    graph["other_plain"] = node("QuantFluxDequantize", model=["other", 0], dtype="auto")
    graph["merge"] = node("ModelMergeSimple", model1=["plain", 0], model2=["other_plain", 0], ratio=0.5)
    graph["sampler"]["inputs"]["model"] = ["merge", 0]
    assert read_picture(client.run(graph).images[0]) == (SHAPE, COLOUR)


def test_the_stock_nodes_save_files_that_draw_the_same_picture(client):
    graph = dequantizing(precision="nf4")
    graph["save_model"] = node("ModelSave", model=["plain", 0], filename_prefix="diffusion_models/dequantized")
    graph["save_clip"] = node("CLIPSave", clip=["plain", 1], filename_prefix="clip/dequantized")
    expected = pixel_hash(client.run(graph).images[0])
    client.free()
    again = text_to_image(CAPTION, precision="none")
    again["transformer"]["inputs"]["model_name"] = "dequantized_00001_.safetensors"
    again["text_encoders"]["inputs"]["t5_name"] = "dequantized_t5xxl_00001_.safetensors"
    again["text_encoders"]["inputs"]["clip_l_name"] = "dequantized_clip_l_00001_.safetensors"
    assert pixel_hash(client.run(again).images[0]) == expected


@pytest.mark.parametrize("behind", [True, False], ids=["LoRA behind Dequantize", "LoRA in front of it"])
def test_a_lora_changes_the_picture_of_a_dequantized_model(client, host, tmp_path, behind):
    save_file(loras.peft(), tmp_path / "dequantize.safetensors")
    host.add_model("loras", tmp_path / "dequantize.safetensors")
    graph = dequantizing(precision="nf4")
    graph["sampler"]["inputs"]["steps"] = 4
    without = pixel_hash(client.run(graph).images[0])
    loader = ["plain", 0] if behind else ["transformer", 0]
    graph["lora"] = node("LoraLoaderModelOnly", model=loader, lora_name="dequantize.safetensors", strength_model=0.5)
    user = graph["sampler"] if behind else graph["plain"]
    user["inputs"]["model"] = ["lora", 0]
    assert pixel_hash(client.run(graph).images[0]) != without


def test_nothing_connected_is_told(client):
    graph = {"plain": node("QuantFluxDequantize", dtype="auto")}
    graph["save"] = node("ModelSave", model=["plain", 0], filename_prefix="none")
    with pytest.raises(PromptFailed, match="connect model, clip, or both"):
        client.run(graph)


def test_the_report_counts_the_models_of_the_workflow_at_each_run(client):
    graph = text_to_image(CAPTION)
    graph["sampler"]["inputs"]["steps"] = 1
    graph["report"] = node("QuantFluxMemoryReport", model=["transformer", 0], clip=["text_encoders", 0], vae=["vae", 0])
    graph["chart"] = node("SaveImage", images=["report", 1], filename_prefix="report")
    graph["text"] = node("PreviewAny", source=["report", 0])
    client.free()
    finished = client.run(graph)
    (figures,) = finished.outputs["report"]["quantflux"]
    (text,) = finished.outputs["report"]["text"]
    assert finished.outputs["text"]["text"] == [f"```\n{text}\n```"]
    assert {one["component"] for one in figures["held"]} == {"Transformer", "T5", "CLIP-L", "VAE"}
    transformer = sum(one["nbytes"] for one in figures["held"] if one["component"] == "Transformer")
    assert transformer == pytest.approx(finished.outputs["transformer"]["quantflux"][0]["bytes"], rel=0.02)
    assert {picture.width for picture in finished.images} == {128, 1024}
    # the loaders are cached now, and say nothing; the report is made anew
    second = client.run(graph)
    assert "transformer" not in second.outputs
    assert second.outputs["report"]["quantflux"][0]["bytes"] == figures["bytes"]
