"""The Compile node: what is compiled, what is not compiled again, and what its report says of it."""

import gc
import logging
import weakref

import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.sample
import loras
import other_dits
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from comfy.ldm.modules.attention import attention_pytorch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_host import has_accelerator
from comfy_kitchen.tensor import QuantizedTensor
from flux_predictions import relative_error
from host_models import with_loras
from quantflux.nodes.compile import QuantFluxCompile
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host import between, compile_report
from quantflux.nodes.host.compile_settings import CompileSettings
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import operations, packed_linears
from quantflux.nodes.quantize import QuantFluxQuantize
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.layouts import is_packed, plain_tensors, quantize
from quantflux.quant_core.source import flux_source

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("nf4", double_quant=True, skip_modules=("linear1",)),
    QuantConfig("int8"),
    QuantConfig("none"),
]
MORE_CONFIGS = [QuantConfig("fp4"), QuantConfig("int8", int8_threshold=0.0)]
BLOCKS = {"DoubleStreamBlock": 2, "SingleStreamBlock": 2}
on_a_gpu = pytest.mark.skipif(not has_accelerator(), reason="compiles for a GPU")


@pytest.fixture(autouse=True)
def nothing_compiled_yet(monkeypatch):
    torch._dynamo.reset()
    # pytest would keep some thousands of its records
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    # on a CPU the host takes an attention that asks for the free memory, which no graph can hold
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", attention_pytorch)


@pytest.fixture
def norms_as_in_graphs(monkeypatch):
    """A graph keeps torch's RMSNorm, whose results on a GPU are rounded to others than ours at a few places."""
    monkeypatch.setattr(between, "can_normalize", lambda x, weight: False)


@pytest.fixture(scope="module")
def models(flux_file):
    known = {}

    def get(config=CONFIGS[0]):
        if config not in known:
            with torch.inference_mode():
                known[config] = load_flux_model(flux_source(open_checkpoint(flux_file), config))
        return known[config]

    return get


def compiled(model, **inputs):
    """The compiled MODEL, and the figures of the node's report, which sampling brings up to date."""
    defaults = {"backend": "eager", "mode": "default", "regional": True, "fullgraph": True, "dynamic": "auto"}
    output = QuantFluxCompile.execute(model, **defaults | inputs)
    return output.args[0], output.ui["quantflux"][0]


def sample(model, side=16, tokens=16, seed=1, steps=1):
    latent = torch.zeros(1, 16, side, side)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, 128, generator=generator)
    condition = [[context, {"pooled_output": torch.randn(1, 64, generator=generator), "guidance": 3.5}]]
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=0
    )


def assert_compiles_once(model, backend, loras_too=True):
    """Graphs without breaks, the same pictures, and nothing compiled again for what changes most."""
    expected = sample(model)
    fast, figures = compiled(model, backend=backend)
    before = len(figures["graphs"])
    # inductor rounds less in between, and an 8-bit input may then round to another step
    bound = 1e-2 if backend == "inductor" else 1e-6
    first = sample(fast)
    assert relative_error(first, expected) < bound
    assert len(figures["graphs"]) == before + 2
    sample(fast, seed=2, tokens=24)
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(fast), first)
    assert len(figures["graphs"]) == before + 2
    if loras_too:
        sample(with_loras(fast, loras.peft()))
        with_lora = len(figures["graphs"])
        sample(with_loras(fast, loras.peft(), strength=0.3), tokens=33)
        sample(with_loras(fast, loras.peft(seed=9), loras.peft(seed=10)))
        sample(fast)
        assert len(figures["graphs"]) == with_lora
    assert figures["graph_breaks"] == {}


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_every_precision_is_a_graph_per_kind_of_block_for_all_prompts(models, config, norms_as_in_graphs):
    # the back end that functionalizes, as inductor does, and computes as without compiling
    assert_compiles_once(models(config), "aot_eager", loras_too=False)


@pytest.mark.parametrize("regional", (True, False))
def test_compiled_graphs_take_packed_weights_in_parts_that_no_layer_keeps(models, regional, monkeypatch):
    fast, _ = compiled(models(), backend="aot_eager", regional=regional)
    expected = sample(fast)
    taken_apart = []
    monkeypatch.setattr(QuantizedTensor, "__tensor_flatten__", lambda weight: taken_apart.append(weight))
    assert torch.equal(sample(fast), expected)
    assert not taken_apart
    layers = packed_linears(fast.model).values()
    assert layers and not any(layer.parts for layer in layers)


@pytest.mark.parametrize("config", CONFIGS[:3], ids=QuantConfig.describe)
def test_what_the_hosts_own_node_compiles_predicts_the_same(models, config, norms_as_in_graphs):
    own = models(config).clone()
    # what TorchCompileModel does, whose back ends are inductor and cudagraphs; newer ones pass options, too
    set_torch_compile_wrapper(own, backend="aot_eager")
    assert relative_error(sample(own), sample(models(config))) < 1e-6


@on_a_gpu
@pytest.mark.parametrize("config", CONFIGS + MORE_CONFIGS, ids=QuantConfig.describe)
def test_inductor_compiles_once_for_prompts_and_loras(models, config):
    assert_compiles_once(models(config), "inductor")


@pytest.mark.parametrize(
    "make, lora_first", [(loras.peft, True), (loras.dora, False)], ids=["plain, in front", "DoRA, behind"]
)
def test_another_lora_and_another_strength_compile_nothing_again(models, make, lora_first, norms_as_in_graphs):
    model = models()

    def with_lora(*tensors, **strength):
        if lora_first:
            return compiled(with_loras(model, *tensors, **strength))
        fast, figures = compiled(model)
        return with_loras(fast, *tensors, **strength), figures

    without, figures = compiled(model)
    before = len(figures["graphs"])
    sample(without)
    fast, _ = with_lora(make())
    assert relative_error(sample(fast), sample(with_loras(model, make()))) < 1e-6
    known = len(figures["graphs"])
    assert known > before + 2
    assert all("a LoRA came, went" in graph["because"] for graph in figures["graphs"][before + 2 :])
    sample(without)
    for tensors, strength in ((make(), 0.3), (make(seed=9), 1.0), (make(seed=9), -0.5)):
        one, _ = with_lora(tensors, strength=strength)
        assert relative_error(sample(one), sample(with_loras(model, tensors, strength=strength))) < 1e-6
    assert len(figures["graphs"]) == known and figures["graph_breaks"] == {}


@pytest.mark.parametrize("dynamic, graphs", [("on", [2, 2, 2, 2]), ("off", [2, 3, 4, 4]), ("auto", [2, 3, 3, 3])])
def test_sizes_of_pictures(models, dynamic, graphs):
    fast, figures = compiled(models(), dynamic=dynamic)
    before = len(figures["graphs"])
    counts = []
    for side in (16, 24, 32, 24):
        sample(fast, side)
        counts.append(len(figures["graphs"]) - before)
    assert counts == graphs
    assert all("another size" in graph["because"] for graph in figures["graphs"][before + 2 :])


def test_the_whole_model_is_one_graph_for_all_prompts_and_steps(models, norms_as_in_graphs):
    model = models()
    fast, figures = compiled(model, regional=False)
    assert relative_error(sample(fast), sample(model)) < 1e-6
    sample(fast, tokens=24)
    sample(fast, steps=3)
    assert [graph["of"] for graph in figures["graphs"]] == ["Flux"] and figures["graph_breaks"] == {}


def test_the_report_is_on_the_node_before_and_after_sampling(flux_file, caplog):
    model = load_flux_model(flux_source(open_checkpoint(flux_file), CONFIGS[0]))
    caplog.set_level("INFO")
    before = QuantFluxCompile.execute(model, "eager", "default", True, False, "auto")
    assert before.ui["text"][0].endswith("Nothing compiled yet: that waits for the first step of sampling.")
    assert before.ui["quantflux"][0]["modules"] == BLOCKS
    sample(before.args[0], steps=2)
    sample(before.args[0])
    (text,) = QuantFluxCompile.execute(model, "eager", "default", True, False, "auto").ui["text"]
    assert "2 graphs compiled in" in text and "0 graph breaks; 3 steps run" in text
    assert "DoubleStreamBlock · 128×128, 16 text tokens · " in text
    # once, after the sampling that compiled
    assert len([r for r in caplog.records if r.getMessage().startswith("Compile: 2 graphs")]) == 1


def test_a_copy_of_a_model_begins_without_its_reports(models, monkeypatch):
    plain = models(QuantConfig("none"))
    _, figures = compiled(plain, backend="aot_eager")
    figures["steps"] = 7
    # as when the copy comes to lie where a model was that is gone
    monkeypatch.setattr(compile_report, "id", lambda model: 0, raising=False)
    copied = QuantFluxQuantize.execute(plain, QuantConfig("nf4")).args[0]
    assert compiled(copied, backend="aot_eager")[1]["steps"] == 0
    assert compiled(plain.clone(), backend="aot_eager")[1] is figures
    assert compiled(plain, backend="eager")[1]["steps"] == 0
    alive = weakref.ref(compile_report.report_of(copied.model, CompileSettings("eager"), []))
    del copied
    gc.collect()
    assert alive() is None


def breaking(function, *args, **kwargs):
    torch._dynamo.graph_break()
    return attention_pytorch(*args, **kwargs)


def test_graph_breaks_are_told_or_with_fullgraph_refused(flux_file, monkeypatch, norms_as_in_graphs):
    model = load_flux_model(flux_source(open_checkpoint(flux_file), CONFIGS[0]))
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", lambda *a, **k: breaking(None, *a, **k))
    expected = sample(model)
    fast, figures = compiled(model, fullgraph=False)
    assert relative_error(sample(fast), expected) < 1e-6
    assert sum(figures["graph_breaks"].values()) > 0
    (text,) = QuantFluxCompile.execute(model, "eager", "default", True, False, "auto").ui["text"]
    assert "× not in a graph: Call to `torch._dynamo.graph_break()`" in text
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match="could not compile the model: .* Set fullgraph to false, or bypass Compile"):
        sample(compiled(model)[0])


@on_a_gpu
@pytest.mark.parametrize("config", [CONFIGS[0], *CONFIGS[2:]], ids=QuantConfig.describe)
@pytest.mark.parametrize("regional", [True, False], ids=["regional", "whole"])
def test_offloaded_layers_give_the_same_picture(models, config, regional):
    model = models(config)
    fast, figures = compiled(model, regional=regional, backend="aot_eager")
    resident = sample(fast)
    known = len(figures["graphs"])
    fast.partially_unload(fast.offload_device, fast.model_size() // 2)
    assert relative_error(sample(fast), resident) < 1e-6
    assert figures["graph_breaks"] == {}
    if not regional:
        return
    # the host's own layers have a mark of where they are, which a graph of them sees; on a CPU they stay
    again = len(figures["graphs"])
    assert again - known <= (2 if has_accelerator() else 0)
    comfy.model_management.load_models_gpu([fast])
    sample(fast)
    fast.partially_unload(fast.offload_device, fast.model_size() // 2)
    sample(fast)
    assert len(figures["graphs"]) == again


@pytest.mark.parametrize("config", CONFIGS[:2], ids=QuantConfig.describe)
def test_an_offloaded_layer_is_lent_whole_and_gets_back_its_own(models, config):
    model = with_loras(models(config), loras.peft())
    comfy.model_management.load_models_gpu([model])
    layer = next(one for one in packed_linears(model.model).values() if one.low_rank is not None)
    weight, bias, low_rank = layer.weight, layer.bias, layer.low_rank
    with layer.lent(torch.device("meta")):
        assert is_packed(layer.weight)
        parts = [*plain_tensors(layer.weight), layer.bias, layer.low_rank.down, layer.low_rank.up]
        assert {part.device.type for part in parts} == {"meta"}
    assert layer.weight is weight and layer.bias is bias and layer.low_rank is low_rank


@pytest.mark.parametrize("config", [QuantConfig("nf4"), QuantConfig("none")], ids=QuantConfig.describe)
def test_patches_in_place_leave_the_layer_as_it_is_compiled_or_not(config):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    layer = operations(None).Linear(64, 32)
    layer.load_state_dict({"weight": quantize(weight, config), "bias": torch.ones(32)})
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    plain = layer(x)
    layer.weight_function, layer.bias_function = [lambda w: w.mul_(2)], [lambda b: b.mul_(3)]
    fast = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for one in (layer, fast, layer, fast):
        torch.testing.assert_close(one(x), (plain - 1) * 2 + 3)


def test_graphs_find_a_copied_layer_and_not_the_one_that_it_was_copied_from(models):
    plain = models(QuantConfig("none"))
    packed = QuantFluxQuantize.execute(plain, QuantConfig("nf4", skip_modules=("linear2",))).args[0]
    original, layer = (model.get_model_object("diffusion_model.single_blocks.0.linear2") for model in (plain, packed))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    layer.weight_function = [lambda weight: weight * 2]
    compiled_layer = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled_layer(x), layer(x))
    assert not torch.equal(compiled_layer(x), original(x))


def test_the_transformer_blocks_of_a_u_net_are_compiled(monkeypatch):
    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(comfy.ldm.modules.attention, name, attention_pytorch)
    packed = QuantFluxQuantize.execute(other_dits.unet(), QuantConfig("nf4")).args[0]
    expected = other_dits.denoised(packed)
    fast, figures = compiled(packed, fullgraph=True)
    assert figures["modules"] == {"BasicTransformerBlock": 4}
    assert torch.equal(other_dits.denoised(fast), expected)
    assert {graph["of"] for graph in figures["graphs"]} == {"BasicTransformerBlock"}


def test_dequantize_refuses_a_compiled_model(models):
    with pytest.raises(ConfigError, match="was compiled"):
        QuantFluxDequantize.execute("auto", model=compiled(models())[0])


@pytest.mark.skipif(has_accelerator(), reason="on a CPU inductor needs a C++ compiler")
def test_a_missing_compiler_is_told_by_the_node(models, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(ConfigError, match="backend inductor does not work on cpu: .*compiler.*Install what it needs"),
    ):
        compiled(models(), backend="inductor")
