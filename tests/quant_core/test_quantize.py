import dataclasses
import logging
import os

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from bnb_references import quantized_by_diffusers
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.flux.names import diffusers_parts
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors, quantize
from quantflux.quant_core.memory import model_nbytes, planned_nbytes
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file, save_file

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4", blocksize=128),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("int8"),
    QuantConfig("nf4", skip_modules=("proj_out", "img_in")),
    QuantConfig("none"),
]


@pytest.mark.parametrize(
    "config", [QuantConfig("nf4"), QuantConfig("fp4"), QuantConfig("int8")], ids=QuantConfig.describe
)
def test_weights_are_packed_to_the_bytes_that_diffusers_packs(flux_model, flux_file, config, tmp_path, monkeypatch):
    ours = load(flux_source(open_checkpoint(flux_file), config))
    theirs = quantized_by_diffusers(flux_model, config, tmp_path, monkeypatch, torch.bfloat16)
    compared = 0
    for name in (name for name, tensor in ours.items() if is_packed(tensor)):
        parts = [theirs.get_submodule(part) for part in diffusers_parts(name.removesuffix(".weight"))]
        if "adaLN" in name:
            continue  # its halves trade places, and packed blocks with them
        data, scale = plain_tensors(ours[name])
        if isinstance(parts[0], Linear4bit):
            assert torch.equal(data, torch.cat([part.weight.data for part in parts])), name
            assert torch.equal(scale, torch.cat([part.weight.quant_state.absmax for part in parts])), name
        else:
            assert isinstance(parts[0], Linear8bitLt)
            assert torch.equal(data, torch.cat([part.weight.data for part in parts])), name
            assert torch.equal(scale, torch.cat([part.weight.SCB for part in parts])), name
        compared += 1
    assert compared == 35


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_streaming_gives_what_quantizing_each_weight_gives(flux_file, config, device):
    loaded = load(flux_source(open_checkpoint(flux_file), config), device)
    stored = load_file(flux_file)
    assert loaded.keys() == stored.keys()
    for name, tensor in loaded.items():
        assert tensor.device.type == device.type
        expected = stored[name].to(device)
        if is_packed(tensor):
            expected = dequantize(quantize(expected, config), torch.float32)
        assert torch.equal(dequantize(tensor, torch.float32), expected.float()), name


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_the_plan_from_the_header_is_the_memory_taken(flux_file, config):
    source = flux_source(open_checkpoint(flux_file), config)
    assert model_nbytes(load(source).values())[0] == planned_nbytes(source)


def test_skipped_modules_stay_at_16_bit_by_native_and_diffusers_names(flux_file):
    def plain(*skip_modules):
        loaded = load(flux_source(open_checkpoint(flux_file), QuantConfig(skip_modules=skip_modules)))
        return sorted(n.removesuffix(".weight") for n, t in loaded.items() if t.ndim == 2 and not is_packed(t))

    assert plain() == []
    assert plain("img_in", "final_layer.*") == ["final_layer.adaLN_modulation.1", "final_layer.linear", "img_in"]
    # the guide's own example: in diffusers' FLUX it names the last layer and one of each single block
    assert plain("proj_out") == ["final_layer.linear", "single_blocks.0.linear2", "single_blocks.1.linear2"]
    # part of a stacked module keeps it whole
    assert plain("single_transformer_blocks.1.attn.to_k") == ["single_blocks.1.linear1"]
    assert plain("to_k") == [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.1.img_attn.qkv",
        "single_blocks.0.linear1",
        "single_blocks.1.linear1",
    ]


def test_a_skip_entry_that_matches_nothing_is_warned_of(flux_file, caplog):
    with caplog.at_level(logging.WARNING):
        flux_source(open_checkpoint(flux_file), QuantConfig(skip_modules=("img_in", "imgin")))
    assert [record.getMessage() for record in caplog.records] == [
        "skip_modules: 'imgin' matches no module of flux.safetensors."
    ]


def allocation_peak(function, mapped_file) -> int:
    """Most bytes held at once on the CPU by what ``function`` made, every temporary counted.

    The profiler counts mapping the file as one allocation of its size; it is none.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert result and events
    held = peak = 0
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    sizes.remove(os.path.getsize(mapped_file))
    for size in sizes:
        held += size
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("config", [QuantConfig("nf4"), QuantConfig("int8")], ids=QuantConfig.describe)
def test_no_more_than_the_packed_model_and_one_layer_is_ever_held(flux_file, config):
    source = flux_source(open_checkpoint(flux_file), config)
    infos = source.checkpoint.tensors.values()
    largest = max(info.shape[0] * info.shape[1] * 2 for info in infos if len(info.shape) == 2)
    all_at_16_bit = sum(torch.Size(info.shape).numel() * 2 for info in infos)
    peak = allocation_peak(lambda: load(source), flux_file)
    # bitsandbytes' CPU quantizer works in float32, with copies of that one layer
    assert peak <= planned_nbytes(source) + 8 * largest
    assert peak < all_at_16_bit


def test_progress_counts_every_tensor_and_may_end_the_loading(flux_file):
    source = flux_source(open_checkpoint(flux_file), QuantConfig())
    seen = []

    def cancel_at_ten(done, total):
        seen.append((done, total))
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(source, progress=cancel_at_ten)
    assert list(dict.fromkeys(seen)) == [(i, len(source.tensors)) for i in range(11)]


def changed(flux_file, tmp_path, change):
    tensors = load_file(flux_file)
    change(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    return open_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("single_blocks.1.linear2.bias"), ("lacks", "single_blocks.1.linear2.bias")),
        (lambda t: t.update({"txt_in.bias": torch.zeros(3)}), ("txt_in.bias", "(3,)")),
        (lambda t: t.update({"txt_in.bias": t["txt_in.bias"].to(torch.int8)}), ("txt_in.bias", "int8")),
    ],
)
def test_an_incomplete_or_misshapen_flux_is_refused_by_the_tensors_name(flux_file, tmp_path, change, words):
    checkpoint = changed(flux_file, tmp_path, change)
    with pytest.raises(CheckpointError) as error:
        flux_source(checkpoint, QuantConfig())
    for word in ("changed.safetensors", *words):
        assert word in str(error.value)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(flux_file, tmp_path):
    path = tmp_path / "shrinking.safetensors"
    path.write_bytes(flux_file.read_bytes())
    source = flux_source(open_checkpoint(path), QuantConfig())
    path.write_bytes(flux_file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="shrinking.safetensors"):
        load(source)


def test_the_file_can_be_replaced_once_it_is_loaded(flux_file, tmp_path):
    path = tmp_path / "replaced.safetensors"
    path.write_bytes(flux_file.read_bytes())
    loaded = load(flux_source(open_checkpoint(path), QuantConfig()))
    before = {name: dequantize(tensor, torch.float32) for name, tensor in loaded.items()}
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"\0" * size)
    for name, tensor in loaded.items():
        assert torch.equal(dequantize(tensor, torch.float32), before[name]), name


def test_t5_is_read_and_quantized_wo_too(t5_file, t5_model):
    source = t5_source(open_checkpoint(t5_file), QuantConfig("nf4"))
    assert dataclasses.asdict(source.model) == {
        name: getattr(t5_model.config, name)
        for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
    }
    loaded = load(source)
    packed = {name for name, tensor in loaded.items() if is_packed(tensor)}
    linears = {f"{n}.weight" for n, m in t5_model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert packed == linears
    assert any(name.endswith("wo.weight") for name in packed)


def test_the_decoder_of_a_whole_t5_is_left_out(tmp_path, t5_model):
    whole = transformers.T5ForConditionalGeneration(t5_model.config).to(torch.bfloat16)
    path = tmp_path / "whole_t5.safetensors"
    save_file({n: t.clone() for n, t in whole.state_dict().items() if n != "encoder.embed_tokens.weight"}, path)
    loaded = load(t5_source(open_checkpoint(path), QuantConfig("none")))
    assert loaded.keys() == {name for name in t5_model.state_dict() if name != "encoder.embed_tokens.weight"}
