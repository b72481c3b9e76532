"""The stock LoRA nodes on packed weights: the effect that they have on plain weights of the same values."""

import loras
import pytest
from stock_models import Studio, node, small_graph, splice

KINDS = {"kohya": loras.kohya, "peft": loras.peft, "native": loras.native, "dora": loras.dora, "lokr": loras.lokr}
T5_LAYER = "text_encoders.t5xxl.transformer.encoder.block.{}.layer.{}"
CLIP_LAYER = "text_encoders.clip_l.transformer.text_model.encoder.layers.{}.mlp.fc1"


def text_lora():
    """T5 and CLIP-L, in every block so that their outputs feel it."""
    m = loras.Maker(0, 0.4)
    shapes = {T5_LAYER.format(i, "0.SelfAttention.v"): (128, 128) for i in range(4)}
    shapes |= {T5_LAYER.format(i, "1.DenseReluDense.wo"): (128, 256) for i in range(4)}
    shapes |= {CLIP_LAYER.format(i): (256, 64) for i in range(2)}
    tensors = {}
    for layer, (rows, columns) in shapes.items():
        tensors |= {f"{layer}.lora_down.weight": m(4, columns), f"{layer}.lora_up.weight": m(rows, 4)}
    return tensors


@pytest.fixture(scope="module")
def studio(host, tmp_path_factory):
    studio = Studio(host, tmp_path_factory.mktemp("stock_nodes"), twin_text=True)
    for kind, make in KINDS.items():
        studio.add("loras", f"{kind}.safetensors", make())
    studio.add("loras", "text.safetensors", text_lora())
    studio.add("loras", "both.safetensors", text_lora() | loras.peft())
    return studio


def with_loras(*names, strength=1.0):
    """The transformer's wire through LoraLoaderModelOnly, once for each name."""
    graph = small_graph()
    for name in names:
        splice(
            graph, "sampler", "model", "LoraLoaderModelOnly",
            lora_name=f"{name}.safetensors", strength_model=strength,
        )  # fmt: skip
    return graph


def with_lora_loader(name, strength_model, strength_clip):
    graph = small_graph()
    graph["lora"] = node(
        "LoraLoader", model=["transformer", 0], clip=["text_encoders", 0], lora_name=f"{name}.safetensors",
        strength_model=strength_model, strength_clip=strength_clip,
    )  # fmt: skip
    graph["sampler"]["inputs"]["model"] = ["lora", 0]
    graph["prompt"]["inputs"]["clip"] = ["lora", 1]
    return graph


@pytest.mark.parametrize("kind", KINDS)
def test_lora_loader_model_only_has_the_effect_that_it_has_on_plain_weights(studio, kind):
    graph = with_loras(kind)
    studio.assert_effect(graph, small_graph())
    studio.assert_as_plain(graph)


@pytest.mark.parametrize(
    ("name", "strength_model", "strength_clip"), [("text", 1.0, 1.0), ("both", 1.0, 1.0), ("both", 0.6, -0.8)]
)
def test_lora_loader_changes_transformer_t5_and_clip_l_as_it_changes_plain_ones(
    studio, name, strength_model, strength_clip
):
    graph = with_lora_loader(name, strength_model, strength_clip)
    studio.assert_effect(graph, small_graph())
    studio.assert_as_plain(graph)


def test_each_strength_of_lora_loader_changes_its_own_half(studio):
    model_only = studio.draw(with_lora_loader("both", 1.0, 0.0))
    clip_only = studio.draw(with_lora_loader("both", 0.0, 1.0))
    assert model_only.latent.equal(studio.draw(with_loras("peft")).latent)
    assert clip_only.latent.equal(studio.draw(with_lora_loader("text", 0.0, 1.0)).latent)


@pytest.mark.parametrize("names", [("kohya", "peft", "native"), ("kohya", "dora", "lokr")], ids=", ".join)
def test_three_loras_in_a_row_add_up_as_on_plain_weights(studio, names):
    graph = with_loras(*names, strength=0.7)
    studio.assert_effect(graph, small_graph())
    for name in names:
        studio.assert_effect(graph, with_loras(name, strength=0.7), least=0.01)
    studio.assert_as_plain(graph)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_draws_the_picture_without_it_to_the_bit(studio, kind):
    # after the same LoRA at full strength, of which nothing may be left on the shared model
    studio.draw(with_loras(kind))
    zero = studio.draw(with_loras(kind, strength=0.0))
    assert zero.latent.equal(studio.draw(small_graph()).latent)


def test_strength_zero_of_both_halves_draws_the_picture_without_it_to_the_bit(studio):
    assert studio.draw(with_lora_loader("both", 0.0, 0.0)).latent.equal(studio.draw(small_graph()).latent)
