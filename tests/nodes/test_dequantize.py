"""The Dequantize node: plain weights, equal to the packed ones to the bit, in models that every stock node takes."""

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import folder_paths
import loras
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_model_merging import CLIPMergeSimple, CLIPSave, ModelMergeSimple, ModelSave
from flux_predictions import predict, relative_error
from host_models import bits, clip_of, stock_flux, with_loras
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host import dequantized
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import PackedLinear, packed_linears
from quantflux.nodes.save import FOLDER, SINGLE_FILE, QuantFluxSave
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4", double_quant=True, skip_modules=("linear1", "img_in")),
    QuantConfig("int8"),
]


def model_of(flux_file, config=CONFIGS[0]):
    return load_flux_model(flux_source(open_checkpoint(flux_file), config))


def run(dtype: str = "auto", **inputs):
    return QuantFluxDequantize.execute(dtype, **inputs).args


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers, wherever they are."""
    return torch.equal(a.cpu(), b.cpu())


def require_equals_dequantized(plain, packed, dtype=None):
    ours, theirs = (dict(module.named_parameters()) for module in (plain, packed))
    assert ours.keys() == theirs.keys()
    assert any(map(is_packed, theirs.values()))
    for name, tensor in ours.items():
        assert type(tensor) is torch.nn.Parameter, name
        expected = dequantize(theirs[name], dtype or theirs[name].dtype)
        assert tensor.dtype == expected.dtype and equal(tensor, expected), name
    assert not any(isinstance(module, PackedLinear) for module in plain.modules())


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_every_weight_of_a_model_is_the_dequantized_one_and_the_packed_model_is_as_before(flux_file, config, dtype):
    packed = model_of(flux_file, config)
    before, prediction = bits(packed.model), predict(packed)
    plain, none = run(dtype, model=packed)
    assert none is None
    assert type(plain) is comfy.model_patcher.ModelPatcher
    wanted = getattr(torch, dtype, None)
    require_equals_dequantized(plain.model.diffusion_model, packed.model.diffusion_model, wanted)
    assert plain.model_dtype() == (wanted or packed.model_dtype())
    assert plain.model_size() == comfy.model_management.module_size(plain.model)
    bound = 0.02 if config.precision == "int8" else 5e-3
    assert relative_error(predict(plain), prediction) < bound
    assert torch.equal(predict(packed), prediction)
    assert all(torch.equal(a, b) for a, b in zip(bits(packed.model), before, strict=True))


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_clip_too_and_its_clip_l_as_it_was(text_files, dtype):
    packed = clip_of(text_files, CONFIGS[0])
    text, pooled = packed.encode_from_tokens(packed.tokenize("a red circle"), return_pooled=True)
    before = bits(packed.cond_stage_model)
    _, plain = run(dtype, clip=packed)
    assert type(plain.patcher) is comfy.model_patcher.ModelPatcher and plain.patcher.is_clip
    wanted = getattr(torch, dtype, None)
    models = plain.cond_stage_model, packed.cond_stage_model
    require_equals_dequantized(*(model.t5xxl for model in models), wanted)
    for ours, theirs in zip(*(model.clip_l.parameters() for model in models), strict=True):
        assert ours.dtype == theirs.dtype and equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    plain_text, plain_pooled = plain.encode_from_tokens(plain.tokenize("a red circle"), return_pooled=True)
    assert relative_error(plain_text, text) < 5e-3 and torch.equal(plain_pooled, pooled)
    assert torch.equal(packed.encode_from_tokens(packed.tokenize("a red circle")), text)
    assert all(torch.equal(a, b) for a, b in zip(bits(packed.cond_stage_model), before, strict=True))


def test_nothing_connected_and_a_dtype_that_is_none_are_told(flux_file):
    with pytest.raises(ConfigError, match="connect model, clip, or both"):
        run()
    with pytest.raises(ConfigError, match="Use one of auto, bfloat16, float16, float32"):
        run("int4", model=model_of(flux_file))


def test_a_model_that_is_not_quantized_is_handed_on(flux_file):
    model = model_of(flux_file, QuantConfig("none"))
    output = QuantFluxDequantize.execute("auto", model=model)
    assert output.args[0] is model
    assert output.ui["text"] == ["model · not quantized, handed on as it is"]


def test_the_node_tells_the_bytes(flux_file):
    packed = model_of(flux_file)
    (figures,) = QuantFluxDequantize.execute("float32", model=packed).ui["quantflux"]
    parameters = list(packed.model.parameters())
    assert figures["bytes"] == sum(4 * tensor.numel() for tensor in parameters)
    assert figures["bytes_before"] == sum(part.nbytes for tensor in parameters for part in plain_tensors(tensor))


def test_merges_are_those_of_the_dequantized_weights(flux_file):
    plain, _ = run("float32", model=model_of(flux_file))
    other, _ = run("float32", model=model_of(flux_file, QuantConfig("int8")))
    (merged,) = ModelMergeSimple().merge(plain, other, 0.25)
    comfy.model_management.load_models_gpu([merged], force_patch_weights=True)
    key = "double_blocks.0.img_attn.qkv.weight"
    sources = (flux_source(open_checkpoint(flux_file), config) for config in (CONFIGS[0], QuantConfig("int8")))
    device = comfy.model_management.get_torch_device()
    a, b = (dequantize(load(source, device)[key], torch.float32).cpu() for source in sources)
    found = merged.model.diffusion_model.get_parameter(key).cpu()
    assert torch.allclose(found, 0.25 * a + 0.75 * b, atol=1e-6)


def test_clips_merge(text_files):
    _, one = run(clip=clip_of(text_files, CONFIGS[0]))
    _, other = run(clip=clip_of(text_files, QuantConfig("int8")))
    key = "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    a, b = (clip.cond_stage_model.get_parameter(key).float().cpu() for clip in (one, other))
    assert not torch.equal(a, b)
    (merged,) = CLIPMergeSimple().merge(one, other, 0.25)
    text = merged.encode_from_tokens(merged.tokenize("a red circle"))
    found = merged.cond_stage_model.get_parameter(key).float().cpu()
    assert relative_error(found, 0.25 * a + 0.75 * b) < 5e-3 < relative_error(a, b)
    assert not torch.equal(text, one.encode_from_tokens(one.tokenize("a red circle")))


@pytest.mark.parametrize("all_of_it", [loras.kohya, loras.peft, loras.dora, loras.full_difference])
@pytest.mark.parametrize("after", [True, False], ids=["LoRA after", "LoRA before"])
def test_loras_have_the_effect_that_they_have_on_packed_weights(flux_file, all_of_it, after):
    packed = model_of(flux_file)
    expected = predict(with_loras(packed, all_of_it()))
    if after:
        plain = with_loras(run("float32", model=packed)[0], all_of_it())
    else:
        plain, _ = run("float32", model=with_loras(packed, all_of_it()))
    assert relative_error(predict(plain), expected) < 2e-3
    assert relative_error(predict(plain), predict(packed)) > 1e-2


def test_a_lora_that_lies_on_the_shared_weights_is_not_copied(flux_file):
    """Another clone's LoRA is baked into biases and skipped layers, and widens the input, while it is loaded."""
    packed = model_of(flux_file, QuantConfig("nf4", skip_modules=("double_blocks.0.img_attn.qkv",)))
    clean, _ = run(model=packed)
    other = with_loras(packed, loras.kohya(), loras.full_difference(), loras.control())
    other.add_object_patch("manual_cast_dtype", torch.float64)
    comfy.model_management.load_models_gpu([other])
    assert packed.backup and packed.object_patches_backup
    again, _ = run(model=packed)
    assert again.model.manual_cast_dtype == clean.model.manual_cast_dtype
    for ours, theirs in zip(again.model.parameters(), clean.model.parameters(), strict=True):
        assert equal(ours, theirs)
    in_place = again.offload_device != again.load_device  # the host has loaded it, and marked its modules as such
    for module in again.model.modules():
        assert not getattr(module, "weight_function", [])
        assert in_place or not hasattr(module, "comfy_patched_weights")
    assert torch.equal(predict(again), predict(clean))


def test_options_object_patches_and_wrappers_stay(flux_file):
    packed = model_of(flux_file).clone()
    calls = []
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    packed.add_wrapper(kind, calls.append)
    packed.set_model_attn1_patch(calls.append)
    packed.add_object_patch("model_sampling", torch.nn.Identity())
    plain, _ = run(model=packed)
    assert plain.get_wrappers(kind, None) == [calls.append]
    assert plain.model_options["transformer_options"]["patches"]["attn1_patch"] == [calls.append]
    assert isinstance(plain.get_model_object("model_sampling"), torch.nn.Identity)
    assert not plain.is_clone(packed) and type(plain.clone()) is comfy.model_patcher.ModelPatcher


@pytest.mark.parametrize("wrap", ["compile", "object patch"])
def test_what_holds_the_packed_layers_is_refused(flux_file, wrap):
    packed = model_of(flux_file).clone()
    if wrap == "compile":
        set_torch_compile_wrapper(packed, "eager", keys=["diffusion_model.double_blocks.0"])
    else:
        packed.add_object_patch("diffusion_model.img_in", torch.nn.Sequential(packed.model.diffusion_model.img_in))
    with pytest.raises(ConfigError, match="Put Dequantize right behind the loader"):
        run(model=packed)


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="this host has no LoRA bypass")
def test_a_lora_bypass_is_refused_and_works_behind_it(flux_file):
    packed = model_of(flux_file)
    before, expected = predict(packed), predict(with_loras(packed, loras.kohya()))

    def bypassing(model):
        return comfy.sd.load_bypass_lora_for_models(model, None, loras.kohya(), 1.0, 0.0)[0]

    with pytest.raises(ConfigError, match="holds its layers.*bypass mode"):
        run(model=bypassing(packed))
    assert relative_error(predict(bypassing(run("float32", model=packed)[0])), expected) < 2e-3
    assert torch.equal(predict(packed), before)


def test_too_little_memory_is_told_with_the_numbers(flux_file, monkeypatch):
    packed = model_of(flux_file)
    before = predict(packed)

    def little(device, torch_free_too=False):
        return (2**20, 2**20) if torch_free_too else 2**20

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    with pytest.raises(MemoryError, match=r"plain weights take 27.[0-9] MiB.*1.0 MiB .*free.*use the packed model"):
        run("float32", model=packed)
    monkeypatch.undo()
    assert torch.equal(predict(packed), before)


def test_a_cancelled_run_leaves_the_packed_model(flux_file):
    packed = model_of(flux_file)
    before = predict(packed)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model=packed)
    assert torch.equal(predict(packed), before)


def test_one_layer_at_a_time(flux_file, monkeypatch):
    packed = model_of(flux_file)
    alive, most = [], []

    def counted(weight, dtype):
        made = dequantize(weight, dtype)
        alive.append(made.data_ptr())
        most.append(weight.numel())
        return made

    monkeypatch.setattr(dequantized, "dequantize", counted)
    plain, _ = run(model=packed)
    # on the CPU what was dequantized is the weight itself, and there is no second one
    kept = {parameter.data_ptr() for parameter in plain.model.parameters()}
    assert set(alive) <= kept or plain.offload_device != plain.load_device
    assert len(most) == len(packed_linears(packed.model))


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def test_the_stock_node_saves_a_file_that_both_loaders_open(flux_file, output):
    plain, _ = run(model=model_of(flux_file))
    ModelSave().save(plain, "m/flux")
    (path,) = (output / "m").iterdir()
    stock = stock_flux(path, dtype=torch.float32)
    ours = load_flux_model(flux_source(open_checkpoint(path), QuantConfig("none")))
    for name, tensor in plain.model.diffusion_model.named_parameters():
        assert equal(stock.model.diffusion_model.get_parameter(name).to(tensor.dtype), tensor), name
        assert equal(ours.model.diffusion_model.get_parameter(name), tensor), name
    assert relative_error(predict(ours), predict(plain)) < 1e-5


def test_the_stock_node_saves_the_text_encoders(text_files, output):
    _, plain = run(clip=clip_of(text_files, CONFIGS[0]))
    CLIPSave().save(plain, "c/clip")
    t5 = load_file(next((output / "c").glob("*t5xxl*")))
    expected = dict(plain.cond_stage_model.t5xxl.transformer.named_parameters())
    assert all(equal(t5[name], tensor) for name, tensor in expected.items())
    again = t5_source(open_checkpoint(next((output / "c").glob("*t5xxl*"))), QuantConfig("none"))
    assert load(again)["encoder.block.0.layer.0.SelfAttention.q.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("format", [SINGLE_FILE, FOLDER])
def test_our_node_saves_it_as_a_16_bit_model(flux_file, output, format):
    plain, _ = run(model=model_of(flux_file))
    (figure,) = QuantFluxSave.execute("plain", format, model=plain).ui["quantflux"]
    source = flux_source(open_checkpoint(output / figure["path"]), QuantConfig("none"))
    kept = dict(plain.model.diffusion_model.named_parameters())
    for name, tensor in load(source).items():
        assert not is_packed(tensor)
        # newer hosts call the scale of a norm its weight
        theirs = kept[name] if name in kept else kept[name.replace("_norm.scale", "_norm.weight")]
        assert equal(tensor.float(), theirs.float()), name
