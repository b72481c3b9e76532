"""The Quantize Model node: any loader's MODEL with packed weights, and the MODEL that it was made of as before."""

import weakref

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import folder_paths
import format_files
import loras
import other_dits
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_host import has_accelerator
from flux_predictions import predict, relative_error
from other_dits import denoised, loaded_by_host, scaled_float8_by_host
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host import quantized
from quantflux.nodes.host.flux_model import load_flux_model, unet_config
from quantflux.nodes.host.operations import PackedLinear, packed_linears
from quantflux.nodes.host.patcher import PackedModelPatcher
from quantflux.nodes.quantize import QuantFluxQuantize
from quantflux.nodes.save import FOLDER, SINGLE_FILE, QuantFluxSave
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.layouts import dequantize, is_packed, nbytes, plain_tensors, quantize
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
from safetensors.torch import load_file, save_file

NF4 = QuantConfig("nf4", torch.float32)
CONFIGS = [
    NF4,
    QuantConfig("fp4", double_quant=True, skip_modules=("linear1", "x_embedder", "double_blocks.*.txt_mlp.0")),
    QuantConfig("int8"),
]
MAKERS = {
    "SD3": lambda: loaded_by_host(other_dits.sd3_tensors()),
    "Wan": lambda: loaded_by_host(other_dits.wan_tensors()),
    "U-Net": other_dits.unet,
}
DITS = {"SD3": other_dits.sd3_tensors, "Wan": other_dits.wan_tensors}
# On a GPU the host's own twin computes in 16 bit.
CLOSE = 0.02 if has_accelerator() else 2e-3


def run(model, config=NF4):
    return QuantFluxQuantize.execute(model, config).args[0]


def packed_as_by_hand(model, linears, config) -> dict[str, torch.Tensor]:
    """Tensors of the transformer, those of ``linears`` with the values that quantizing leaves them."""
    tensors = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    for name in linears:
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = dequantize(quantize(weight, config), weight.dtype)
    return tensors


def linears_of(model) -> set[str]:
    modules = model.model.diffusion_model.named_modules()
    return {name for name, module in modules if isinstance(module, (torch.nn.Linear, PackedLinear))}


def packed_names(model) -> set[str]:
    return set(packed_linears(model.model.diffusion_model))


def bits(model) -> list[torch.Tensor]:
    return [part.clone() for tensor in model.model.parameters() for part in plain_tensors(tensor)]


def with_lora(patcher, tensors, strength=1.0):
    return comfy.sd.load_lora_for_models(patcher, None, tensors, strength, 0.0)[0]


@pytest.fixture
def stock_flux(monkeypatch):
    """The host's own loader for the small FLUX, for whose sizes older hosts have constants."""

    def load_stock(path, **options):
        sizes = unet_config(flux_source(open_checkpoint(path), QuantConfig("none")).model)
        sizes = {name: sizes[name] for name in ("num_heads", "axes_dim", "context_in_dim", "vec_in_dim")}
        detect = comfy.model_detection.detect_unet_config
        with monkeypatch.context() as patch:
            patch.setattr(
                comfy.model_detection, "detect_unet_config", lambda *args, **kwargs: detect(*args, **kwargs) | sizes
            )
            return comfy.sd.load_diffusion_model(str(path), model_options=options)

    return load_stock


# FLUX: what Load Quantized Transformer makes of the same file ---------------------------------------------------------


def require_same_as_loaded(ours, path, config):
    theirs = load_flux_model(flux_source(open_checkpoint(path), config))
    one, other = (dict(model.model.diffusion_model.named_parameters()) for model in (ours, theirs))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert is_packed(tensor) == is_packed(other[name]), name
        for a, b in zip(plain_tensors(tensor), plain_tensors(other[name]), strict=True):
            # the host may have made the plain ones wider, which changes no value
            assert torch.equal(a, b if is_packed(tensor) else b.to(a.dtype)), name
    assert torch.equal(predict(ours), predict(theirs))


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_stock_flux_becomes_to_the_bit_what_our_loader_makes_of_its_file(flux_file, stock_flux, config):
    stock = stock_flux(flux_file)
    before, prediction = bits(stock), predict(stock)
    packed = run(stock, config)
    assert type(packed) is PackedModelPatcher and not packed.is_clone(stock)
    require_same_as_loaded(packed, flux_file, config)
    assert packed.model.memory_usage_factor != stock.model.memory_usage_factor
    assert type(stock) is comfy.model_patcher.ModelPatcher and not packed_names(stock)
    assert all(torch.equal(a, b) for a, b in zip(bits(stock), before, strict=True))
    assert torch.equal(predict(stock), prediction)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_stock_flux_cast_to_fp8_stands_for_its_values_in_bfloat16(flux_file, stock_flux, tmp_path, dtype):
    save_file(format_files.as_float8(load_file(flux_file), dtype)[0], tmp_path / "fp8.safetensors")
    config = QuantConfig("nf4", skip_modules=("img_in", "linear2"))
    packed = run(stock_flux(flux_file, dtype=dtype), config)
    assert {tensor.dtype for tensor in packed.model.diffusion_model.parameters()} == {torch.bfloat16}
    require_same_as_loaded(packed, tmp_path / "fp8.safetensors", config)


def test_a_scaled_fp8_file_in_the_stock_loader_stands_for_weight_times_scale(flux_file, stock_flux, tmp_path):
    tensors = load_file(flux_file)
    linears = set(flux_source(open_checkpoint(flux_file)).model.linear_shapes())
    stored, _ = format_files.as_scaled_float8(tensors, linears, "scale_weight", "()", torch.float8_e4m3fn)
    save_file(stored, tmp_path / "scaled.safetensors")
    stock = stock_flux(tmp_path / "scaled.safetensors")
    if not any(hasattr(module, "scale_weight") for module in stock.model.modules()):
        pytest.skip("this host reads such files as quantized tensors, which round otherwise")
    config = QuantConfig("nf4", skip_modules=("img_in", "linear2"))
    packed = run(stock, config)
    for name, tensor in load(flux_source(open_checkpoint(tmp_path / "scaled.safetensors"), config)).items():
        if name.endswith(".weight"):  # this host holds the biases beside them in fp8
            ours = packed.model.diffusion_model.get_parameter(name)
            assert is_packed(ours) == is_packed(tensor)
            assert torch.equal(dequantize(ours, torch.float32), dequantize(tensor, torch.float32)), name
    # its fp8 is gone, and with it what the host remembers for saving it
    plain = QuantFluxDequantize.execute("auto", model=packed).args[0]
    saved = plain.model.state_dict_for_saving()
    assert "scaled_fp8" not in "".join(saved) and not any("scale_weight" in name for name in saved)


def test_tensors_that_the_host_quantized_are_dequantized_by_it():
    tensors = other_dits.sd3_tensors(torch.bfloat16)
    name = "joint_blocks.1.x_block.mlp.fc1"
    stock = scaled_float8_by_host(tensors, [name])
    held = stock.model.diffusion_model.get_submodule(name).weight
    assert type(held) is not torch.Tensor and type(held.data) is not torch.Tensor
    packed = run(stock)
    ours = packed.model.diffusion_model.get_submodule(name).weight
    weight = tensors[f"{name}.weight"].float()
    scale = weight.abs().amax() / 448
    values = ((weight / scale).to(torch.float8_e4m3fn).float() * scale).to(torch.bfloat16)
    assert relative_error(dequantize(ours, torch.float32), dequantize(quantize(values, NF4), torch.float32)) < 1e-2
    assert relative_error(denoised(packed), denoised(stock)) < 0.2


def test_a_model_of_our_loader_at_16_bit_is_packed_too_and_keeps_its_source(flux_file, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    plain = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("none")))
    packed = run(plain, CONFIGS[1])
    require_same_as_loaded(packed, flux_file, CONFIGS[1])
    (figure,) = QuantFluxSave.execute("packed", SINGLE_FILE, model=packed).ui["quantflux"]
    assert open_checkpoint(tmp_path / figure["path"]).metadata["quantflux"].count("flux.safetensors") == 1


@pytest.mark.parametrize("format", [SINGLE_FILE, FOLDER])
def test_a_quantized_stock_flux_can_be_saved(flux_file, stock_flux, tmp_path, monkeypatch, format):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    (figure,) = QuantFluxSave.execute("packed", format, model=run(stock_flux(flux_file))).ui["quantflux"]
    saved = load(flux_source(open_checkpoint(tmp_path / figure["path"])))
    for name, tensor in load(flux_source(open_checkpoint(flux_file), NF4)).items():
        assert is_packed(tensor) == is_packed(saved[name])
        assert torch.equal(dequantize(saved[name], torch.float32), dequantize(tensor, torch.float32)), name


# every architecture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [NF4, QuantConfig("fp4", torch.float32, double_quant=True, blocksize=128)], ids=str)
@pytest.mark.parametrize("name", DITS)
def test_a_packed_dit_predicts_what_the_host_does_with_the_dequantized_weights(name, config):
    stock = MAKERS[name]()
    prediction, before = denoised(stock), bits(stock)
    packed = run(stock, config)
    assert packed_names(packed) == linears_of(stock)
    twin = loaded_by_host(packed_as_by_hand(stock, linears_of(stock), config))
    assert relative_error(denoised(packed), denoised(twin)) < CLOSE
    assert relative_error(denoised(packed), prediction) > 2 * CLOSE
    assert torch.equal(denoised(stock), prediction)
    assert all(torch.equal(a, b) for a, b in zip(bits(stock), before, strict=True))


def test_a_u_net_has_its_linear_layers_packed_and_its_convolutions_kept():
    stock = other_dits.unet()
    packed = run(stock)
    assert packed_names(packed) == linears_of(stock)
    twin = other_dits.unet()
    twin.model.diffusion_model.load_state_dict(packed_as_by_hand(stock, linears_of(stock), NF4))
    assert relative_error(denoised(packed), denoised(twin)) < CLOSE
    assert relative_error(denoised(packed), denoised(stock)) > 2 * CLOSE


@pytest.mark.parametrize("name", MAKERS)
def test_int8_is_close_to_the_model(name):
    stock = MAKERS[name]()
    packed = run(stock, QuantConfig("int8", torch.float32))
    assert packed_names(packed) == linears_of(stock)
    assert 0 < relative_error(denoised(packed), denoised(stock)) < 0.05


@pytest.mark.parametrize("name", MAKERS)
def test_offloaded_layers_compute_the_same_bits(name):
    packed = run(MAKERS[name]())
    resident = denoised(packed)
    packed.partially_unload(packed.offload_device, packed.model_size() // 2)
    assert torch.equal(denoised(packed, load=False), resident)
    comfy.model_management.unload_all_models()
    assert torch.equal(denoised(packed), resident)


@pytest.mark.parametrize("name", MAKERS)
def test_dequantizing_gives_the_dequantized_weights(name):
    stock = MAKERS[name]()
    expected = packed_as_by_hand(stock, linears_of(stock), NF4)
    packed = run(stock)
    plain = QuantFluxDequantize.execute("auto", model=packed).args[0]
    assert type(plain) is comfy.model_patcher.ModelPatcher
    assert plain.model.memory_usage_factor == stock.model.memory_usage_factor
    found = plain.model.diffusion_model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor.cpu(), expected[key].cpu()) for key, tensor in found.items())
    assert relative_error(denoised(plain), denoised(packed)) < CLOSE


LORAS = {
    "SD3": {
        "diffusion_model.joint_blocks.0.x_block.attn.qkv": (384, 128),
        "transformer.transformer_blocks.1.ff.net.0.proj": (512, 128),
        "transformer.transformer_blocks.0.attn.to_k": (128, 128),
    },
    "Wan": {"diffusion_model.blocks.0.self_attn.q": (256, 256), "diffusion_model.blocks.1.ffn.0": (512, 256)},
}


@pytest.mark.parametrize("before", [True, False], ids=["LoRA before", "LoRA behind"])
@pytest.mark.parametrize("name", DITS)
def test_a_lora_has_the_effect_of_one_merged_into_the_dequantized_weights(name, before):
    m = loras.Maker(0, 0.1)
    tensors = {}
    for layer, (rows, columns) in LORAS[name].items():
        tensors |= {f"{layer}.lora_A.weight": m(4, columns), f"{layer}.lora_B.weight": m(rows, 4)}
    stock = MAKERS[name]()
    twin = loaded_by_host(packed_as_by_hand(stock, linears_of(stock), NF4))
    changed = run(with_lora(stock, tensors)) if before else with_lora(run(stock), tensors)
    merged = with_lora(twin, tensors)
    assert sum(map(len, changed.patches.values())) == len(tensors) // 2
    assert relative_error(denoised(changed), denoised(merged)) < CLOSE
    assert relative_error(denoised(changed), denoised(twin)) > 2 * CLOSE
    # as branches beside the packed weights
    layers = packed_linears(changed.model)
    assert {f"{name}.weight" for name, layer in layers.items() if layer.low_rank is not None} == set(changed.patches)


def test_a_lora_that_lies_on_the_shared_weights_is_not_packed(flux_file, stock_flux):
    stock = stock_flux(flux_file)
    other = with_lora(with_lora(stock, loras.kohya()), loras.full_difference())
    comfy.model_management.load_models_gpu([other])
    assert other.backup
    require_same_as_loaded(run(stock), flux_file, NF4)


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "taken off again"])
def test_object_patches_of_another_clone_are_not_packed(attached):
    stock = MAKERS["SD3"]()
    transformer = stock.model.diffusion_model
    everything, prediction = linears_of(stock), denoised(run(stock))
    other = stock.clone()
    other.add_object_patch("diffusion_model.final_layer.linear", torch.nn.Sequential(torch.nn.Linear(128, 64)))
    other.add_object_patch("diffusion_model.x_embedder.forward", transformer.final_layer.forward)
    comfy.model_management.load_models_gpu([other])
    assert "forward" in vars(transformer.x_embedder)
    if not attached:
        # the host leaves the method of the class on the module
        comfy.model_management.unload_all_models()
    packed = run(stock)
    assert packed_names(packed) == everything
    assert torch.equal(denoised(packed), prediction)


def test_options_object_patches_and_wrappers_stay():
    stock = MAKERS["SD3"]().clone()
    calls = []
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL

    def wrapper(executor, *args, **kwargs):
        calls.append(executor)
        return executor(*args, **kwargs)

    stock.add_wrapper(kind, wrapper)
    stock.set_model_attn1_patch(calls.append)
    stock.add_object_patch("latent_format", "another")
    packed = run(stock)
    assert packed.get_wrappers(kind, None) == [wrapper]
    assert packed.model_options["transformer_options"]["patches"]["attn1_patch"] == [calls.append]
    assert packed.get_model_object("latent_format") == "another"
    assert type(packed.clone()) is PackedModelPatcher


# which layers ---------------------------------------------------------------------------------------------------------


# the last block has no context mlp
FC1 = {"joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.context_block.mlp.fc1", "joint_blocks.1.x_block.mlp.fc1"}


@pytest.mark.parametrize(
    ("name", "entries", "skipped"),
    [
        ("SD3", ("proj_out",), {"final_layer.linear"}),
        ("SD3", ("final_layer.linear",), {"final_layer.linear"}),
        ("SD3", ("transformer_blocks.0.attn.to_q",), {"joint_blocks.0.x_block.attn.qkv"}),
        ("SD3", ("joint_blocks.*.mlp.fc1", "nothing"), FC1),
        ("Wan", ("head",), {"head.head"}),
        ("U-Net", ("time_embedding.linear_1",), {"time_embed.0"}),
    ],
)
def test_skipped_modules_stay_as_they_are(name, entries, skipped, caplog):
    stock = MAKERS[name]()
    everything = linears_of(stock)
    assert skipped <= everything
    packed = run(stock, QuantConfig("nf4", skip_modules=entries))
    assert packed_names(packed) == everything - skipped
    for module in skipped:
        ours, theirs = (one.model.diffusion_model.get_submodule(module) for one in (packed, stock))
        assert type(ours) is type(theirs) and torch.equal(ours.weight, theirs.weight)
        assert ours.weight.data_ptr() != theirs.weight.data_ptr()
    assert ("'nothing' matches no linear module" in caplog.text) == ("nothing" in entries)


def test_layers_that_would_not_become_smaller_and_foreign_kinds_stay():
    stock = MAKERS["SD3"]()
    transformer = stock.model.diffusion_model
    transformer.tiny = torch.nn.Linear(4, 2)
    transformer.plain = torch.nn.Linear(64, 64)
    transformer.attention = torch.nn.MultiheadAttention(64, 2)
    packed = run(stock, QuantConfig("int8"))
    found = packed.model.diffusion_model
    assert type(found.tiny) is torch.nn.Linear and isinstance(found.plain, PackedLinear)
    assert is_packed(found.plain.weight)
    # its weight is used without its forward
    assert type(found.attention.out_proj) is type(transformer.attention.out_proj)


def test_the_host_counts_the_bytes_that_are_held():
    packed = run(MAKERS["SD3"]())
    held = sum(nbytes(tensor) for tensor in packed.model.parameters())
    held += sum(tensor.nbytes for tensor in packed.model.buffers())
    assert packed.model_size() == held


def test_a_float16_model_computes_in_what_the_config_says():
    stock = loaded_by_host(other_dits.sd3_tensors(torch.float16), dtype=torch.float16)
    packed = run(stock, QuantConfig("nf4", torch.float32))
    assert packed.model_dtype() == torch.float32 and packed.model.manual_cast_dtype is None
    assert all(layer.compute_dtype == torch.float32 for layer in packed_linears(packed.model).values())
    assert denoised(packed).isfinite().all()
    assert stock.model_dtype() == torch.float16


# what is handed on, and what is refused -------------------------------------------------------------------------------


def test_precision_none_and_a_packed_model_that_agrees_are_handed_on(flux_file):
    stock = MAKERS["SD3"]()
    assert run(stock, QuantConfig("none")) is stock
    packed = run(stock, QuantConfig("nf4", skip_modules=("proj_out",)))
    for config in (None, QuantConfig("nf4"), QuantConfig("nf4", skip_modules=("proj_out",))):
        assert run(packed, config) is packed
    assert QuantFluxQuantize.execute(packed).ui["text"][0].startswith("handed on as it is")
    loaded = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("int8", int8_threshold=2.0)))
    assert run(loaded, QuantConfig("int8", int8_threshold=2.0)) is loaded


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QuantConfig("int8"), "as nf4, but the config asks for int8 threshold 6"),
        (QuantConfig("nf4", double_quant=True), "as nf4, but the config asks for nf4 double quant"),
        (QuantConfig("nf4", blocksize=128), "as nf4, but the config asks for nf4 blocksize 128"),
        (QuantConfig("none"), "as nf4, but the config asks for 16-bit"),
        (QuantConfig("nf4", skip_modules=("proj_out",)), "with final_layer.linear, but the config skips that module"),
        (QuantConfig("nf4", torch.float16), "with compute_dtype float32, but the config asks for float16"),
    ],
    ids=str,
)
def test_a_packed_model_and_another_config_are_told_apart(config, words):
    packed = run(MAKERS["SD3"]())
    with pytest.raises(ConfigError, match=f"{words}.*put a Dequantize node"):
        run(packed, config)


def test_quantizing_again_behind_dequantize_works():
    stock = MAKERS["SD3"]()
    plain = QuantFluxDequantize.execute("auto", model=run(stock)).args[0]
    again = run(plain, QuantConfig("int8", torch.float32))
    assert packed_names(again) == linears_of(stock)
    assert relative_error(denoised(again), denoised(plain)) < 0.05


class OtherProjects(torch.nn.Parameter):
    """A tensor as other projects' packs have them: GGUF's, bitsandbytes' own."""


@pytest.mark.parametrize("kind", ["class", "dtype"])
def test_weights_that_another_project_packed_are_refused_by_name(kind):
    stock = MAKERS["SD3"]()
    layer = stock.model.diffusion_model.joint_blocks[1].x_block.mlp.fc2
    data = torch.zeros(layer.weight.shape, dtype=torch.uint8)
    made = OtherProjects if kind == "class" else torch.nn.Parameter
    layer.weight = made(data, requires_grad=False)
    named = "OtherProjects" if kind == "class" else "torch.uint8"
    with pytest.raises(ConfigError, match=rf"joint_blocks.1.x_block.mlp.fc2.weight is a {named}.*16-bit or fp8 file"):
        run(stock)


def test_nothing_to_pack_is_told():
    with pytest.raises(ConfigError, match="no linear layer to quantize that skip_modules does not name"):
        run(MAKERS["SD3"](), QuantConfig("nf4", skip_modules=("*",)))
    device = torch.device("cpu")
    with pytest.raises(ConfigError, match="no transformer or U-Net"):
        run(comfy.model_patcher.ModelPatcher(torch.nn.Linear(64, 64), device, device))


def test_a_budget_is_for_files():
    with pytest.raises(ConfigError, match="use Load Quantized Transformer"):
        run(MAKERS["SD3"](), QuantConfig("nf4", budget_gib=1.0))


def compiled(model):
    set_torch_compile_wrapper(model, "eager", keys=["diffusion_model.final_layer"])


def wrapped(model):
    layer = model.model.diffusion_model.final_layer.linear
    model.add_object_patch("diffusion_model.final_layer.linear", torch.nn.Sequential(layer))


def with_a_bound_method(model):
    model.add_object_patch("diffusion_model.final_layer.forward", model.model.diffusion_model.final_layer.forward)


def with_a_closure(model):
    block = model.model.diffusion_model.joint_blocks[0]
    model.set_model_unet_function_wrapper(lambda apply, options: block(apply, options))


def injected(model):
    block = model.model.diffusion_model.joint_blocks[0]
    injection = comfy.patcher_extension.PatcherInjection(inject=lambda _: block, eject=lambda _: None)
    model.set_injections("one", [injection])


def hooked(model):
    model.model.diffusion_model.final_layer.linear.register_forward_hook(lambda *args: None)


@pytest.mark.parametrize("hold", [compiled, wrapped, with_a_bound_method, with_a_closure, injected, hooked])
def test_what_holds_the_layers_is_refused(hold):
    stock = MAKERS["SD3"]().clone()
    hold(stock)
    with pytest.raises(ConfigError, match="Put Quantize Model right behind the loader"):
        run(stock)


def test_hook_loras_are_refused():
    stock = MAKERS["SD3"]().clone()
    stock.hook_patches = {object(): {}}
    with pytest.raises(ConfigError, match="hook LoRAs.*Use LoraLoader"):
        run(stock)


def test_saving_another_model_than_flux_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with pytest.raises(ConfigError, match="model is a SD3, and of packed transformers only FLUX.1 can be saved"):
        QuantFluxSave.execute("sd3", SINGLE_FILE, model=run(MAKERS["SD3"]()))
    assert not list(tmp_path.rglob("*.*"))


# memory ---------------------------------------------------------------------------------------------------------------


def test_too_little_memory_is_told_with_the_numbers(monkeypatch):
    stock = MAKERS["SD3"]()
    before = denoised(stock)

    def little(device=None, torch_free_too=False):
        return (2**18, 2**18) if torch_free_too else 2**18

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    with pytest.raises(MemoryError, match=r"packed it takes 0.\d MiB, and 0.2 MiB .*free.*fewer bits"):
        run(stock)
    monkeypatch.undo()
    assert torch.equal(denoised(stock), before)


def test_a_cancelled_run_leaves_the_model():
    stock = MAKERS["SD3"]()
    before = denoised(stock)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(stock)
    assert torch.equal(denoised(stock), before) and not packed_names(stock)


def test_one_layer_at_a_time(monkeypatch):
    """The 16-bit values of an fp8 weight are gone before those of the next are made."""
    stock = loaded_by_host(other_dits.sd3_tensors(torch.float16), dtype=torch.float8_e4m3fn)
    alive, most = set(), []

    def counted(weight, config, pause):
        assert weight.dtype == torch.bfloat16
        number = len(most)
        alive.add(number)
        weakref.finalize(weight, alive.discard, number)
        most.append(len(alive))
        return quantize(weight, config, pause)

    monkeypatch.setattr(quantized, "quantize", counted)
    packed = run(stock)
    assert len(most) == len(packed_names(packed)) and max(most) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_holds_the_packed_model_and_one_layer_at_most(flux_file, stock_flux):
    stock = stock_flux(flux_file)
    comfy.model_management.unload_all_models()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packed = run(stock)
    held = sum(nbytes(tensor) for tensor in packed.model.parameters())
    largest = max(tensor.numel() for tensor in packed.model.parameters())
    assert packed.model.device.type == "cuda"
    # of the largest layer: as stored, and what bitsandbytes makes of it
    assert torch.cuda.max_memory_allocated() - before < 1.1 * held + 12 * largest
