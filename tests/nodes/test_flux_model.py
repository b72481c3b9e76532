import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.sd
import pytest
import torch
from bnb_references import quantized_by_diffusers
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import packed_linears
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
from safetensors.torch import save_file

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("fp4"),
    QuantConfig("int8"),
    QuantConfig("none"),
]
TEXT_TOKENS, SIDE = 16, 8


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "latent": torch.randn(1, 16, SIDE, SIDE, generator=generator),
        "context": torch.randn(1, TEXT_TOKENS, 128, generator=generator),
        "pooled": torch.randn(1, 64, generator=generator),
    }


def predict(patcher) -> torch.Tensor:
    """One prediction of the host's transformer, as the sampler would ask for it."""
    comfy.model_management.load_models_gpu([patcher])
    x = {name: tensor.to(patcher.load_device) for name, tensor in inputs().items()}
    time = torch.tensor([0.5], device=patcher.load_device)
    guidance = torch.tensor([3.5], device=patcher.load_device)
    transformer = patcher.model.diffusion_model
    return transformer(x["latent"], time, x["context"], x["pooled"], guidance).float().cpu()


def predict_with_diffusers(model) -> torch.Tensor:
    x = inputs()
    half = SIDE // 2
    ids = torch.zeros(half, half, 3)
    ids[..., 1] += torch.arange(half)[:, None]
    ids[..., 2] += torch.arange(half)[None, :]
    patches = x["latent"].reshape(1, 16, half, 2, half, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, half * half, 64)
    y = model(
        hidden_states=patches,
        encoder_hidden_states=x["context"],
        pooled_projections=x["pooled"],
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=ids.reshape(-1, 3),
        txt_ids=torch.zeros(TEXT_TOKENS, 3),
        return_dict=False,
    )[0]
    return y.reshape(1, half, half, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, SIDE, SIDE)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def loaded(path, config: QuantConfig):
    return load_flux_model(flux_source(open_checkpoint(path), config))


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig("nf4", torch.float32),
        QuantConfig("fp4", torch.float32),
        QuantConfig("nf4", torch.float32, double_quant=True),
        QuantConfig("int8"),
        QuantConfig("int8", int8_threshold=2.0),
    ],
    ids=QuantConfig.describe,
)
def test_predictions_are_those_of_diffusers_with_bitsandbytes(flux_model, flux_file, config, tmp_path, monkeypatch):
    theirs = predict_with_diffusers(quantized_by_diffusers(flux_model, config, tmp_path, monkeypatch, torch.float32))
    unquantized = predict_with_diffusers(flux_model)
    ours = predict(loaded(flux_file, config))
    # double quantization is not the same to the bit: stacked parts share one offset, diffusers' have one each
    bound = 2e-3 if config.double_quant else 1e-4
    assert relative_error(ours, theirs) < bound
    # and it is not that nothing was quantized
    assert relative_error(ours, unquantized) > 3 * bound


def test_unquantized_predictions_are_those_of_diffusers(flux_model, flux_file):
    assert relative_error(predict(loaded(flux_file, QuantConfig("none"))), predict_with_diffusers(flux_model)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_the_host_counts_the_bytes_that_are_held(flux_file, config):
    source = flux_source(open_checkpoint(flux_file), config)
    patcher = load_flux_model(source)
    outside_the_transformer = patcher.model_size() - comfy.model_management.module_size(patcher.model.diffusion_model)
    assert patcher.model_size() - outside_the_transformer == planned_nbytes(source)


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_unloading_and_loading_again_changes_no_bit(flux_file, config):
    patcher = loaded(flux_file, config)
    before = predict(patcher)
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(patcher), before)


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_offloaded_layers_compute_the_same_bits(flux_file, config):
    patcher = loaded(flux_file, config)
    resident = predict(patcher)
    patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2)
    assert torch.equal(predict(patcher), resident)


def dequantized_file(flux_file, config, path):
    tensors = load(flux_source(open_checkpoint(flux_file), config))
    save_file({name: dequantize(tensor, torch.float32).contiguous() for name, tensor in tensors.items()}, path)
    return path


def lora(strength: float = 0.2) -> dict[str, torch.Tensor]:
    """A LoRA of diffusers, whose q and v are slices of the native layer."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for module, rows in (("attn.to_q", 256), ("attn.to_v", 256), ("ff.net.0.proj", 1024)):
        key = f"transformer.transformer_blocks.0.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(4, 256, generator=generator) * strength
        tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * strength
    return tensors


def with_lora(patcher, strength: float):
    return comfy.sd.load_lora_for_models(patcher, None, lora(), strength, 0.0)[0]


@pytest.mark.parametrize("config", CONFIGS[:-1], ids=QuantConfig.describe)
def test_a_lora_has_the_effect_that_the_host_gives_it_on_the_dequantized_weights(flux_file, config, tmp_path):
    packed = loaded(flux_file, config)
    plain = loaded(dequantized_file(flux_file, config, tmp_path / "plain.safetensors"), QuantConfig("none"))
    base = predict(packed)
    ours = predict(with_lora(packed, 1.0))
    expected = predict(with_lora(plain, 1.0))
    # LLM.int8() also rounds activations, which a plain product does not
    bound = 0.02 if config.precision == "int8" else 2e-3
    assert relative_error(ours, expected) < bound
    assert relative_error(ours, base) > 3 * bound
    # and it leaves no trace
    assert torch.equal(predict(packed), base)


def test_a_lora_stays_on_when_part_of_the_model_is_unloaded_and_loaded_again(flux_file):
    patcher = with_lora(loaded(flux_file, QuantConfig("nf4")), 1.0)
    resident = predict(patcher)
    patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2)
    assert torch.equal(predict(patcher), resident)
    patcher.partially_load(patcher.load_device, patcher.model_size())
    assert torch.equal(predict(patcher), resident)
    layers = packed_linears(patcher.model)
    assert not any(layer.weight_function for layer in layers.values())
    branched = [name for name, layer in layers.items() if layer.low_rank is not None]
    assert [name.rpartition("blocks.")[2] for name in branched] == ["0.img_attn.qkv", "0.img_mlp.0"]


def test_a_finished_load_leaves_nothing_behind_when_the_next_one_fails(flux_file, monkeypatch):
    source = flux_source(open_checkpoint(flux_file), QuantConfig("nf4"))
    comfy.model_management.unload_all_models()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load_flux_model(source)
    assert comfy.model_management.current_loaded_models == []
