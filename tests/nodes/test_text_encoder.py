import pytest
import torch
from flux_predictions import relative_error
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.operations import packed_linears
from quantflux.nodes.host.text_encoder import T5_TOKENS, load_flux_clip
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.layouts import dequantize, nbytes
from quantflux.quant_core.memory import packed_nbytes
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import clip_l_source, t5_source
from small_models import random_clip_l, random_t5, save_t5

NF4 = QuantConfig("nf4")
CONFIGS = [QuantConfig("none"), NF4, QuantConfig("fp4"), QuantConfig("int8")]
PROMPT = "a red circle on a white background"


def sources(text_files, config: QuantConfig):
    return (
        t5_source(open_checkpoint(text_files / "t5.safetensors"), config),
        clip_l_source(open_checkpoint(text_files / "clip_l.safetensors")),
    )


def encode(clip, prompt: str = PROMPT):
    ((text, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return text.cpu(), extra["pooled_output"].cpu()


def with_transformers(t5, clip, prompt: str = PROMPT):
    """The same encoders' text states and pooled text in transformers' classes, in float32."""
    tokens = clip.tokenize(prompt)
    t5_ids = torch.tensor([[token for token, _ in tokens["t5xxl"][0]]])
    clip_ids = torch.tensor([[token for token, _ in tokens["l"][0]]])
    return t5(input_ids=t5_ids).last_hidden_state, random_clip_l().float()(input_ids=clip_ids).pooler_output


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_text_is_encoded_as_by_transformers_with_the_same_weights(text_files, config):
    t5, clip_l = sources(text_files, config)
    clip = load_flux_clip(t5, clip_l)
    reference = random_t5(vocab_size=32128).float()
    weights = {name: dequantize(tensor, torch.float32) for name, tensor in load(t5).items()}
    reference.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    text, pooled = encode(clip)
    expected_text, expected_pooled = with_transformers(reference, clip)
    # LLM.int8() also rounds activations; bfloat16 products, where a GPU has them, round to 8 bits
    bound = 0.02 if config.precision == "int8" or clip.patcher.load_device.type != "cpu" else 1e-4
    assert relative_error(text, expected_text) < bound
    assert relative_error(pooled, expected_pooled) < 1e-3


@pytest.mark.parametrize("vocabulary", [384, T5_TOKENS - 1, 250112], ids=["byT5", "cut off", "mT5"])
def test_a_t5_of_another_vocabulary_is_refused_before_it_is_read(tmp_path, text_files, vocabulary):
    path = tmp_path / "t5_other.safetensors"
    save_t5(random_t5(vocab_size=vocabulary, num_layers=1), path)
    _, clip_l = sources(text_files, NF4)
    with pytest.raises(CheckpointError) as error:
        load_flux_clip(t5_source(open_checkpoint(path), NF4), clip_l)
    for words in (
        f"t5_other.safetensors: has a vocabulary of {vocabulary} ",
        "t5xxl_fp16.safetensors",
        "DualCLIPLoader",
    ):
        assert words in str(error.value)


def test_every_token_of_the_tokenizer_has_a_row_in_the_smallest_vocabulary_that_is_read(tmp_path, text_files):
    save_t5(random_t5(vocab_size=T5_TOKENS, num_layers=1), tmp_path / "t5.safetensors")
    _, clip_l = sources(text_files, NF4)
    clip = load_flux_clip(t5_source(open_checkpoint(tmp_path / "t5.safetensors"), NF4), clip_l)
    tokenizer = clip.tokenizer.t5xxl.tokenizer
    assert max(tokenizer.get_vocab().values()) == T5_TOKENS - 1
    assert encode(clip, "<extra_id_0> a red circle")[0].isfinite().all()


def test_products_in_bfloat16_leave_the_hosts_float32_between_layers(text_files):
    clip = load_flux_clip(*sources(text_files, QuantConfig("nf4", compute_dtype=torch.bfloat16)))
    exact = load_flux_clip(*sources(text_files, QuantConfig("nf4", compute_dtype=torch.float32)))
    text, reference = encode(clip)[0], encode(exact)[0]
    assert text.dtype == torch.float32
    assert 1e-5 < relative_error(text, reference) < 0.02


def test_float16_does_not_overflow_where_t5_is_known_to(tmp_path, text_files):
    model = random_t5(vocab_size=T5_TOKENS)
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e6)
    save_t5(model, tmp_path / "t5.safetensors")
    _, clip_l = sources(text_files, NF4)

    def encoded(dtype):
        config = QuantConfig("nf4", compute_dtype=dtype)
        return encode(load_flux_clip(t5_source(open_checkpoint(tmp_path / "t5.safetensors"), config), clip_l))[0]

    assert relative_error(encoded(torch.float16), encoded(torch.float32)) < 0.01


def test_token_weights_and_clip_skip_work_as_on_a_plain_encoder(text_files):
    packed = load_flux_clip(*sources(text_files, QuantConfig("nf4", compute_dtype=torch.float32)))
    plain = QuantFluxDequantize.execute("float32", clip=packed).args[1]

    def both(prompt):
        ours, expected = encode(packed, prompt)[0], encode(plain, prompt)[0]
        assert relative_error(ours, expected) < 2e-3
        return ours

    text, weighted = both(PROMPT), both(PROMPT.replace("red", "(red:1.3)"))
    assert weighted.shape == text.shape
    assert relative_error(weighted, text) > 1e-2
    for clip in (packed, plain):
        clip.clip_layer(-2)
    assert relative_error(both(PROMPT), text) > 1e-2


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_the_host_counts_the_bytes_of_both_encoders(text_files, config):
    t5, clip_l = sources(text_files, config)
    clip = load_flux_clip(t5, clip_l)
    encoder = clip.cond_stage_model.t5xxl.transformer
    held = sum(nbytes(parameter) for parameter in clip.cond_stage_model.parameters())
    assert clip.patcher.model_size() == held
    # the embedding and norms may stand in another dtype than in the file, as the host wants them
    linears = sum(nbytes(module.weight) for module in packed_linears(encoder).values())
    planned = sum(packed_nbytes(t5.checkpoint.tensors[name].shape, config) for name in t5.packed)
    assert linears == planned


def test_quantizing_wo_too_costs_little(text_files):
    """What ``T5Config.linear_shapes`` says of wo."""

    def error(*skip_modules):
        text, _ = encode(load_flux_clip(*sources(text_files, QuantConfig("nf4", skip_modules=skip_modules))))
        return relative_error(text, reference)

    reference, _ = encode(load_flux_clip(*sources(text_files, QuantConfig("none"))))
    assert error() < 1.25 * error("wo")
