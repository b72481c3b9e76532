import diffusers
import pytest
import torch
import transformers
from quantflux.quant_core.config import BLOCKSIZES, FLOAT8, QuantConfig, named_compute_dtype, parse_skip_modules
from quantflux.quant_core.errors import ConfigError

RECIPES = [
    QuantConfig("nf4", torch.bfloat16),
    QuantConfig("fp4", torch.float16, double_quant=True, skip_modules=("proj_out", "x_embedder")),
    QuantConfig("nf4", torch.float32, double_quant=True),
    QuantConfig("int8", int8_threshold=0.0),
    QuantConfig("int8", int8_threshold=4.5, skip_modules=("proj_out",)),
]


@pytest.mark.parametrize("config", RECIPES, ids=QuantConfig.describe)
@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_recipe_survives_the_libraries_own_class_and_its_json(config, library):
    theirs = getattr(config, f"to_{library}")()
    assert isinstance(theirs, {"diffusers": diffusers, "transformers": transformers}[library].BitsAndBytesConfig)
    assert QuantConfig.from_hugging_face(theirs) == config
    assert QuantConfig.from_hugging_face(theirs.to_dict()) == config


@pytest.mark.parametrize("library", [diffusers, transformers])
def test_the_libraries_defaults_are_read_as_they_mean_them(library):
    assert QuantConfig.from_hugging_face(library.BitsAndBytesConfig(load_in_4bit=True)) == QuantConfig(
        "fp4", compute_dtype=torch.float32
    )
    assert QuantConfig.from_hugging_face(library.BitsAndBytesConfig(load_in_8bit=True)) == QuantConfig("int8")


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "nf5"},
        {"blocksize": 63},
        {"blocksize": 8192},
        {"compute_dtype": torch.int8},
        {"int8_threshold": -1.0},
        {"int8_threshold": float("nan")},
        {"int8_threshold": float("inf")},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_name(fields):
    (name,) = fields
    with pytest.raises(ConfigError, match=name):
        QuantConfig(**fields)


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({"quant_method": "gptq", "load_in_4bit": True}, "gptq"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "fp16_weight"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "int4"}, "compute_dtype"),
    ],
)
def test_a_foreign_quantization_config_is_refused_with_the_reason(wire, message):
    with pytest.raises(ConfigError, match=message):
        QuantConfig.from_hugging_face(wire)


@pytest.mark.parametrize("config", [QuantConfig("none"), QuantConfig("nf4", blocksize=128)], ids=QuantConfig.describe)
def test_what_the_libraries_cannot_say_is_refused_rather_than_dropped(config):
    with pytest.raises(ConfigError):
        config.to_diffusers()


def test_skip_modules_may_stand_on_lines_or_between_commas():
    assert parse_skip_modules(" img_in,txt_in\n\n single_blocks.* ,") == ("img_in", "txt_in", "single_blocks.*")
    assert parse_skip_modules("img_in，txt_in、vector_in") == ("img_in", "txt_in", "vector_in")
    assert parse_skip_modules("") == ()
    assert parse_skip_modules("double_blocks.5") == ("double_blocks.5",)


@pytest.mark.parametrize("text", ["auto:7,5", "auto:7,5GiB", "img_in, 5", "0", "7.5", "img_in\n7.5 gb"])
def test_a_number_is_no_module(text):
    with pytest.raises(ConfigError, match="names no module. For a block write its list too"):
        parse_skip_modules(text)


def test_every_blocksize_of_bitsandbytes_is_allowed():
    for blocksize in BLOCKSIZES:
        assert QuantConfig(blocksize=blocksize).blocksize == blocksize


def test_a_compute_dtype_is_known_by_name_and_no_other_name_is_taken_for_auto():
    assert named_compute_dtype("auto") is None
    assert named_compute_dtype("float16") is torch.float16
    with pytest.raises(ConfigError, match="int8.*bfloat16"):
        named_compute_dtype("int8")


def test_float8_has_no_name_in_the_libraries_and_is_bfloat16_there():
    assert named_compute_dtype("float8") is FLOAT8
    config = QuantConfig("nf4", FLOAT8)
    assert config.to_diffusers().bnb_4bit_compute_dtype is torch.bfloat16
    assert QuantConfig.from_hugging_face(config.to_transformers().to_dict()) == QuantConfig("nf4", torch.bfloat16)
