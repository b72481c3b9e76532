"""Our MODEL and CLIP in the stock nodes that FLUX workflows are made of."""

from read_picture import pixel_hash, read_picture
from shape_scenes import prompts
from tiny_workflow import MODELS, load_workflow, text_to_image

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]

# What flux_dev_text_to_image.json calls the files, and the small model's files that stand in for them.
REAL_NAMES = {
    "diffusion_models": ["flux1-dev.safetensors"],
    "text_encoders": ["t5xxl_fp16.safetensors", "clip_l.safetensors"],
    "vae": ["ae.safetensors"],
}


def test_clip_text_encode_flux_gives_the_same_picture_as_clip_text_encode_and_flux_guidance(client):
    graph = text_to_image(CAPTION, seed=5)
    separate = client.run(graph)
    graph["prompt"] = {
        "class_type": "CLIPTextEncodeFlux",
        "inputs": {"clip": ["text_encoders", 0], "clip_l": CAPTION, "t5xxl": CAPTION, "guidance": 3.5},
    }
    graph["sampler"]["inputs"]["positive"] = ["prompt", 0]
    del graph["guidance"]
    together = client.run(graph)
    assert pixel_hash(together.images[0]) == pixel_hash(separate.images[0])


def test_the_flux_dev_workflow_runs_as_shipped_but_for_its_prompt_and_size(host):
    for folder, names in REAL_NAMES.items():
        for file, name in zip(MODELS[folder], names, strict=True):
            host.add_model(folder, file, name)
    graph = load_workflow("flux_dev_text_to_image")
    graph["prompt"]["inputs"]["text"] = CAPTION
    graph["latent"]["inputs"].update(width=128, height=128)
    (picture,) = host.client.run(graph).images
    assert read_picture(picture) == (SHAPE, COLOUR)


def test_a_token_weight_changes_the_picture_and_keeps_its_subject(client):
    weighted = CAPTION.replace(COLOUR, f"({COLOUR}:1.3)")
    assert weighted != CAPTION
    (plain,) = client.run(text_to_image(CAPTION, seed=5)).images
    (changed,) = client.run(text_to_image(weighted, seed=5)).images
    assert pixel_hash(changed) != pixel_hash(plain)
    assert read_picture(changed)[0] == SHAPE


def test_model_and_clip_serve_many_samplers_in_one_workflow(client):
    graph = text_to_image(CAPTION, seed=5)
    once = pixel_hash(client.run(graph).images[0])
    for name in ("sampler", "decode", "save"):
        graph[f"second_{name}"] = {**graph[name], "inputs": dict(graph[name]["inputs"])}
    graph["second_sampler"]["inputs"]["latent_image"] = ["latent", 0]
    graph["second_sampler"]["inputs"]["seed"] = 6
    graph["second_decode"]["inputs"]["samples"] = ["second_sampler", 0]
    graph["second_save"]["inputs"]["images"] = ["second_decode", 0]
    client.free()
    pictures = [pixel_hash(picture) for picture in client.run(graph).images]
    assert len(set(pictures)) == 2
    assert once in pictures
