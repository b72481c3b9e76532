"""The Save Quantized Model node, on models that the host's own classes hold."""

import os
from pathlib import Path

import comfy.cli_args
import comfy.model_management
import diffusers
import folder_paths
import loras
import pytest
import torch
from dequantized import CPU_MIXES_BLOCKS_UP
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from flux_predictions import predict, predict_with_diffusers, prediction_bound, relative_error
from host_models import clip_of, with_loras
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.folders import T5S, TRANSFORMERS, chosen
from quantflux.nodes.host.saving import TEXT_ENCODERS
from quantflux.nodes.host.text_encoder import load_flux_clip
from quantflux.nodes.save import FOLDER, SINGLE_FILE, QuantFluxSave
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.export import SaveError
from quantflux.quant_core.layouts import dequantize, is_packed
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source
from safetensors.torch import load_file, save_file
from same_bits import require_same_bits

CONFIGS = [
    QuantConfig("nf4", double_quant=True),
    QuantConfig("nf4", torch.float32, skip_modules=("img_in",)),
    QuantConfig("int8"),
]


def described(config: QuantConfig) -> str:
    return " ".join([config.describe(), *config.skip_modules])


@pytest.fixture
def output(tmp_path, monkeypatch):
    """An output folder, registered with the host's model folders as its main.py does it."""
    root = tmp_path / "output"
    monkeypatch.setattr(folder_paths, "output_directory", str(root))
    for key, name in (("diffusion_models", "diffusion_models"), ("text_encoders", "clip")):
        extensions = folder_paths.folder_names_and_paths[key][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(root / name)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return root


def loaded_model(flux_file, config: QuantConfig = CONFIGS[0]):
    return load_flux_model(flux_source(open_checkpoint(flux_file), config))


def save(prefix: str = "quantflux", format: str = SINGLE_FILE, **inputs) -> list[dict]:
    ui = QuantFluxSave.execute(prefix, format, **inputs).ui
    figures = ui["quantflux"]
    assert [line.split(" · ")[0] for line in ui["text"]] == [figure["path"] for figure in figures]
    return figures


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("config", CONFIGS, ids=described)
def test_a_saved_transformer_is_offered_and_predicts_the_same_bits(flux_file, output, config):
    model = loaded_model(flux_file, config)
    before = predict(model)
    (figure,) = save(model=model)
    assert figure["path"] == "diffusion_models/quantflux_00001_.safetensors"
    assert figure["bytes"] == (output / figure["path"]).stat().st_size
    source = flux_source(chosen(TRANSFORMERS, "quantflux_00001_.safetensors"))
    assert not source.packed
    assert torch.equal(predict(load_flux_model(source)), before)


@pytest.mark.parametrize("config", [*CONFIGS, QuantConfig("none")], ids=described)
def test_a_saved_transformer_is_the_loaded_one_bit_for_bit(flux_file, output, config):
    source = flux_source(open_checkpoint(flux_file), config)
    save(model=load_flux_model(source))
    saved = load(flux_source(chosen(TRANSFORMERS, "quantflux_00001_.safetensors"), config))
    require_same_bits(saved, load(source), same_origin=config.precision != "int8")


@pytest.mark.parametrize("config", [*CONFIGS, QuantConfig("nf4", skip_modules=("wo",))], ids=described)
def test_a_saved_t5_is_the_loaded_one_bit_for_bit(text_files, output, config):
    clip = clip_of(text_files, config)
    (figure,) = save(clip=clip)
    assert figure["path"] == f"{TEXT_ENCODERS}/quantflux_00001_.safetensors"
    source = t5_source(chosen(T5S, "quantflux_00001_.safetensors"))
    assert not source.packed
    again = load_flux_clip(source, clip_l_source(open_checkpoint(text_files / "clip_l.safetensors")))
    # as the host holds them: it makes float16 of a bfloat16 embedding, which rounds values below 1e-7
    require_same_bits(*(dict(one.cond_stage_model.t5xxl.transformer.named_parameters()) for one in (again, clip)))
    text, text_again = (one.encode_from_tokens(one.tokenize("a red circle")) for one in (clip, again))
    assert torch.equal(text, text_again)
    dtypes = {name: tensor.dtype for name, tensor in load_file(text_files / "t5.safetensors").items()}
    saved = load_file(output / figure["path"])
    assert all(saved[name].dtype == dtypes[name] for name in dtypes if name not in packed_names(clip))


def packed_names(clip) -> set[str]:
    return {n for n, t in clip.cond_stage_model.t5xxl.transformer.named_parameters() if is_packed(t)}


def test_both_are_saved_as_folders_that_are_offered(flux_file, text_files, output):
    model = loaded_model(flux_file)
    transformer, t5 = save("mine/flux", FOLDER, model=model, clip=clip_of(text_files, CONFIGS[0]))
    assert transformer["path"] == "diffusion_models/mine/flux_00001_"
    assert t5["path"] == "clip/mine/flux_00001_"
    assert files_below(output) == [
        "clip/mine/flux_00001_/config.json",
        "clip/mine/flux_00001_/model.safetensors",
        "diffusion_models/mine/flux_00001_/config.json",
        "diffusion_models/mine/flux_00001_/diffusion_pytorch_model.safetensors",
    ]
    assert transformer["bytes"] == sum(f.stat().st_size for f in (output / transformer["path"]).iterdir())
    reloaded = load(flux_source(chosen(TRANSFORMERS, "mine/flux_00001_")))
    original = load(flux_source(open_checkpoint(flux_file), CONFIGS[0]))
    for name, tensor in original.items():
        assert torch.equal(dequantize(reloaded[name], torch.float32), dequantize(tensor, torch.float32)), name
    assert not t5_source(chosen(T5S, "mine/flux_00001_")).packed


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig("nf4", torch.float32, double_quant=True),
        QuantConfig("fp4", torch.float32, blocksize=128, skip_modules=("final_layer.linear",)),
        QuantConfig("int8", int8_threshold=2.0),
    ],
    ids=described,
)
def test_diffusers_predicts_the_same_from_a_saved_folder(flux_file, output, config, monkeypatch):
    if CPU_MIXES_BLOCKS_UP and config.blocksize > 64:
        pytest.skip("on this CPU bitsandbytes multiplies wrongly where blocks run across rows")
    model = loaded_model(flux_file, config)
    (figure,) = save(format=FOLDER, model=model)
    for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):  # which refuse to start without a GPU
        quantizer = getattr(bnb_quantizer, name)
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": torch.device("cpu")})
    with torch.inference_mode(False):
        theirs = diffusers.FluxTransformer2DModel.from_pretrained(output / figure["path"], torch_dtype=torch.float32)
    for module in theirs.modules():
        module.support_avx512bf16_for_cpu = False  # or Linear4bit repacks its weight at the first product
    assert relative_error(predict(model), predict_with_diffusers(theirs)) < prediction_bound(config)


@pytest.mark.parametrize("format", [SINGLE_FILE, FOLDER])
def test_nothing_is_overwritten(flux_file, output, format):
    model = loaded_model(flux_file)
    paths = [save(format=format, model=model)[0]["path"] for _ in range(3)]
    assert len(set(paths)) == 3
    assert [name.split("_")[2] for name in paths] == ["00001", "00002", "00003"]


@pytest.mark.parametrize(
    "prefix",
    ["../../x", "../x", "a/../../x", "/tmp/x", "", "  ", ".", "..", "a/..", ".hidden", "a\nb", "a\0b"],
)
def test_a_prefix_that_leaves_the_folder_or_is_no_name_is_refused(flux_file, output, prefix):
    with pytest.raises(ConfigError, match="filename_prefix .* Write a name, such as"):
        save(prefix, model=loaded_model(flux_file))
    assert files_below(output.parent) == []


@pytest.mark.parametrize(
    "prefix, cause", [("x/" * 3000, "its name is too long"), ("file/x", "it cannot be written .Not a directory.")]
)
def test_a_prefix_whose_folder_cannot_be_made_says_what_the_system_says(flux_file, output, prefix, cause):
    (output / "diffusion_models").mkdir(parents=True)
    (output / "diffusion_models" / "file").touch()
    with pytest.raises(SaveError, match=f"was not saved: {cause}"):
        save(prefix, model=loaded_model(flux_file))


def test_a_folder_deeper_than_the_loaders_look_is_refused_before_any_is_made(flux_file, output):
    model = loaded_model(flux_file)
    with pytest.raises(ConfigError, match="'a/b/c/d/deep' has 4 folders before the name, .* at most 3. Write fewer"):
        save("a/b/c/d/deep", FOLDER, model=model)
    assert not output.exists()
    for prefix, format in (("a/b/c/deepest", FOLDER), ("a/b/c/d/e/file", SINGLE_FILE)):
        (figure,) = save(prefix, format, model=model)
        assert not flux_source(chosen(TRANSFORMERS, figure["path"].removeprefix("diffusion_models/"))).packed


def test_an_absolute_prefix_within_the_folder_is_refused_too(flux_file, output):
    with pytest.raises(ConfigError, match="filename_prefix"):
        save(str(output / "diffusion_models" / "x"), model=loaded_model(flux_file))


def test_nothing_connected_is_told(output):
    with pytest.raises(ConfigError, match="connect model, clip, or both"):
        save()


def test_a_format_that_is_none_is_told(flux_file, output):
    with pytest.raises(ConfigError, match="Use one of single file, diffusers folder"):
        save(format="gguf", model=loaded_model(flux_file))


def test_a_lora_is_refused_with_the_way_out(flux_file, text_files, output):
    patched = with_loras(loaded_model(flux_file), loras.kohya())
    with pytest.raises(ConfigError, match="model has LoRAs .* Connect model from before the LoRA"):
        # before the T5, which could be saved, is written
        save(model=patched, clip=clip_of(text_files, CONFIGS[0]))
    clip = clip_of(text_files, CONFIGS[0]).clone()
    key = "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    clip.patcher.add_patches({key: ("diff", (torch.ones(128, 128),))})
    with pytest.raises(ConfigError, match="clip has LoRAs"):
        save(clip=clip)
    assert files_below(output) == []


@pytest.mark.parametrize("lora", [loras.kohya, loras.full_difference], ids=["plain", "with biases"])
def test_a_lora_on_another_clone_is_not_saved(flux_file, output, lora):
    config = QuantConfig("nf4", skip_modules=("double_blocks.0.img_attn.qkv",))
    model = loaded_model(flux_file, config)
    predict(with_loras(model, lora()))  # leaves it on the weights that both share
    save(model=model)
    saved = load(flux_source(chosen(TRANSFORMERS, "quantflux_00001_.safetensors")))
    require_same_bits(saved, load(flux_source(open_checkpoint(flux_file), config)))


def test_a_clone_of_an_offloaded_model_is_saved_the_same(flux_file, output):
    model = loaded_model(flux_file)
    save(model=model)
    predict(model)
    model.partially_unload(model.offload_device, model.model_size() // 2)
    save(model=model.clone())
    one, other = (load_file(output / "diffusion_models" / f"quantflux_0000{i}_.safetensors") for i in (1, 2))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_models_of_other_loaders_are_refused_with_the_node_that_saves_them(flux_file, text_files, output):
    model = loaded_model(flux_file, QuantConfig("none"))
    del model.model.diffusion_model.quantflux_provenance
    with pytest.raises(ConfigError, match="not loaded by Load Quantized Transformer.*ModelSave"):
        save(model=model)
    clip = clip_of(text_files, CONFIGS[0])
    del clip.cond_stage_model.t5xxl.transformer.quantflux_provenance
    with pytest.raises(ConfigError, match="not loaded by Load Quantized T5.*CLIPSave"):
        save(clip=clip)
    del clip.cond_stage_model.t5xxl  # a CLIP of Stable Diffusion
    with pytest.raises(ConfigError, match="not loaded by Load Quantized T5.*CLIPSave"):
        save(clip=clip)


@pytest.mark.parametrize("format", [SINGLE_FILE, FOLDER])
def test_a_cancelled_save_leaves_nothing(flux_file, output, format):
    model = loaded_model(flux_file)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        save(format=format, model=model)
    assert files_below(output) == []
    assert not any(name.endswith(".partial") for name in os.listdir(output / "diffusion_models"))


def test_norms_that_a_newer_host_calls_weights_are_found(flux_file, output):
    model = loaded_model(flux_file)
    for module in model.model.diffusion_model.modules():
        if "scale" in module._parameters:
            module._parameters["weight"] = module._parameters.pop("scale")
    save(model=model)
    saved = load_file(output / "diffusion_models" / "quantflux_00001_.safetensors")
    name = "double_blocks.0.img_attn.norm.query_norm.scale"
    assert torch.equal(saved[name], load_file(flux_file)[name])


def test_an_embedding_that_the_host_changed_is_saved_as_it_is_now(text_files, output, tmp_path):
    """Its dtype in the file would lose bits."""
    stored = load_file(text_files / "t5.safetensors")
    save_file(stored, tmp_path / "t5.safetensors")
    clip = clip_of(text_files, CONFIGS[0])
    changed = clip.cond_stage_model.t5xxl.transformer.shared.weight.float() + 1e-6
    clip.cond_stage_model.t5xxl.transformer.shared.weight = torch.nn.Parameter(changed, requires_grad=False)
    save(clip=clip)
    saved = load_file(output / "clip" / "quantflux_00001_.safetensors")["shared.weight"]
    assert saved.dtype == torch.float32 and torch.equal(saved, changed)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_a_t5_that_the_host_rounded_to_fp8_is_refused_with_the_flag(text_files, output, monkeypatch, dtype):
    monkeypatch.setattr(comfy.cli_args.args, f"{dtype}_text_enc", True)
    clip = clip_of(text_files, CONFIGS[0])
    held = dtype.replace("fp8", "float8")
    with pytest.raises(ConfigError, match=f"of clip was rounded from bfloat16 to {held} .* without --{dtype}-text-enc"):
        save(clip=clip)
    assert files_below(output) == []
