"""Quality Report in a workflow of a real host: NF4 against the same file at 16 bit."""

import csv
import io

import pytest
from comfy_client import PromptFailed
from tiny_workflow import text_to_image

STEPS = 4


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def comparing(**inputs) -> dict:
    """The small model's workflow, with the report in the place of the sampler and all that comes after it."""
    graph = text_to_image("a large red circle on a white background", precision="nf4")
    for after in ("sampler", "decode", "save", "vae"):
        del graph[after]
    graph["plain"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | {"precision": "none"}))
    graph["reference"] = node("QuantFluxLoadTransformer", model_name="flux_tiny.safetensors", config=["plain", 0])
    connected = {"reference": ["reference", 0], "model": ["transformer", 0], "latent_image": ["latent", 0]}
    prompts = {"positive": ["guidance", 0], "negative": ["negative", 0]}
    graph["quality"] = node("QuantFluxQuality", **connected, **prompts, **({"steps": STEPS, "seed": 5} | inputs))
    graph["chart"] = node("SaveImage", images=["quality", 1], filename_prefix="quality")
    graph["csv"] = node("PreviewAny", source=["quality", 2])
    return graph


def test_the_report_the_chart_and_the_csv_tell_the_same(client):
    seen = []
    graph = comparing(cfg=2.0, layer_outputs=True)
    finished = client.run(graph, on_progress=lambda node_id, done, total: seen.append((node_id, done, total)))
    (text,), (figures,) = (finished.outputs["quality"][key] for key in ("text", "quantflux"))
    rows = list(csv.DictReader(io.StringIO(finished.outputs["csv"]["text"][0])))
    steps = [row for row in rows if row["measure"] == "velocity"]
    assert [float(row["relative_error"]) for row in steps] == [step["velocity"] for step in figures["steps"]]
    assert len(steps) == STEPS and f"{STEPS} euler steps, simple schedule, cfg 2, seed 5" in text
    # 4 bit is off by about a tenth, and by far more only if something is wrong
    assert 0.05 < figures["weight"] < 0.15
    assert 0.01 < figures["velocity"] < 0.5 and 0.001 < figures["drift"] < 0.5
    assert all(0 < layer["output"] < 0.5 for layer in figures["layers"])
    (picture,) = finished.images
    assert picture.width == 1024
    total = 3 * STEPS + len(figures["layers"])
    assert ("quality", total, total) in seen


def test_an_input_that_is_missing_is_told(client):
    graph = comparing(cfg=2.0)
    del graph["quality"]["inputs"]["negative"]
    with pytest.raises(PromptFailed, match="Connect negative, or set cfg to 1"):
        client.run(graph)
