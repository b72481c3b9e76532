"""Which of a repository's files and folders is taken, and naming one of them."""

import os

import hub_server
import pytest
import torch
from hub_server import NOWHERE, file_of, folder_of
from quantflux.quant_core.hub import HubError
from quantflux.quant_core.identify import CLIP_L, FLUX, FLUX_DIFFUSERS, T5
from safetensors.torch import save

TRANSFORMER = {"_class_name": "FluxTransformer2DModel"}
PACKED = TRANSFORMER | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
WEIGHTS = "diffusion_pytorch_model.safetensors"
FP8 = torch.float8_e4m3fn
IN_T5 = "text_encoders.t5xxl.transformer." + T5.marker
IN_FLUX = "model.diffusion_model." + FLUX.marker


def nf4(weight: str, **more: torch.Tensor) -> bytes:
    packed = torch.zeros(8, 1, dtype=torch.uint8)
    return save(
        {
            weight: packed,
            f"{weight}.absmax": torch.zeros(1),
            f"{weight}.quant_map": torch.zeros(16),
            f"{weight}.quant_state.bitsandbytes__nf4": packed.clone(),
            **more,
        }
    )


def int8(weight: str) -> bytes:
    scales = weight.removesuffix("weight") + "SCB"
    return save({weight: torch.zeros(8, 8, dtype=torch.int8), scales: torch.zeros(8)})


SIXTEEN_BIT_FILE = {"flux.safetensors": file_of(FLUX.marker)}
SIXTEEN_BIT_FOLDER = folder_of(TRANSFORMER, WEIGHTS, path="transformer")
PACKED_FOLDER = folder_of(PACKED, WEIGHTS, path="transformer")
FP8_FILE = {"flux_fp8.safetensors": file_of(FLUX.marker, FP8)}
NF4_FILE = {"flux_nf4.safetensors": nf4(FLUX.marker)}


@pytest.fixture
def chosen(hub, fetch):
    """Name of what is taken from a repository with these files."""

    def call(files, wanted=FLUX):
        hub.add("owner/name", files)
        return os.path.basename(fetch("owner/name", wanted))

    return call


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (SIXTEEN_BIT_FILE | SIXTEEN_BIT_FOLDER | FP8_FILE | NF4_FILE, "flux.safetensors"),
        (SIXTEEN_BIT_FILE | PACKED_FOLDER, "flux.safetensors"),
        (SIXTEEN_BIT_FOLDER | FP8_FILE, "transformer"),
        (PACKED_FOLDER | FP8_FILE, "transformer"),
        (PACKED_FOLDER | NF4_FILE, "transformer"),
        (FP8_FILE, "flux_fp8.safetensors"),
        (NF4_FILE, "flux_nf4.safetensors"),
        ({"flux_int8.safetensors": int8(FLUX.marker)}, "flux_int8.safetensors"),
        ({"flux.safetensors": nf4(FLUX_DIFFUSERS.marker)}, "flux.safetensors"),
        (
            FP8_FILE | {"config.json": b"{}"} | folder_of(TRANSFORMER, "weights.bin", path="transformer"),
            "flux_fp8.safetensors",
        ),
    ],
)
def test_16_bit_goes_before_packed_and_a_packed_folder_before_an_fp8_or_packed_file(chosen, files, expected):
    assert chosen(files) == expected


def test_a_16_bit_folder_at_the_root_goes_before_a_packed_one_below_it(hub, fetch):
    hub.add("owner/name", PACKED_FOLDER | folder_of(TRANSFORMER, WEIGHTS))
    assert os.path.basename(fetch("owner/name")) == hub_server.commit_of("owner/name", "main")


def test_the_config_of_another_model_does_not_hide_a_file_with_the_name_of_a_folders_weights(chosen):
    files = {"config.json": b'{"model_type": "bert"}', "model.safetensors": file_of(FLUX.marker)}
    assert chosen(files) == "model.safetensors"


def test_of_an_all_in_one_checkpoint_the_wanted_model_counts(chosen):
    files = {"all.safetensors": nf4(IN_FLUX, **{IN_T5: torch.zeros(8, dtype=torch.float16)})}
    assert chosen(files) == "all.safetensors"
    assert chosen(files, T5) == "all.safetensors"
    # its T5 is at 16 bit
    assert chosen(files | {"t5_fp8.safetensors": file_of(T5.marker, FP8)}, T5) == "all.safetensors"


def test_a_file_of_its_own_goes_before_an_all_in_one_checkpoint(chosen):
    all_in_one = save({IN_FLUX: torch.zeros(8), IN_T5: torch.zeros(8, dtype=FP8)})
    files = {"all.safetensors": all_in_one, "t5_fp8.safetensors": file_of(T5.marker, FP8)}
    assert chosen(files, T5) == "t5_fp8.safetensors"


def test_a_file_of_fp8_with_some_layers_at_16_bit_is_no_16_bit_file(chosen):
    mixed = save({FLUX.marker: torch.zeros(8, dtype=torch.bfloat16), "double_blocks.1.x": torch.zeros(8, dtype=FP8)})
    assert chosen({"a_mixed.safetensors": mixed, "flux.safetensors": file_of(FLUX.marker)}) == "flux.safetensors"
    assert chosen({"a_mixed.safetensors": mixed} | SIXTEEN_BIT_FOLDER) == "transformer"


@pytest.mark.parametrize("revision", ["", "@v2"])
def test_several_packed_or_fp8_files_are_listed_with_the_way_to_name_one(hub, fetch, tmp_path, revision):
    hub.add("owner/name", FP8_FILE | NF4_FILE, revision=revision[1:] or "main")
    with pytest.raises(HubError, match="^owner/name.*in several files, none of them at 16 bit") as error:
        fetch(f"owner/name{revision}")
    assert "flux_fp8.safetensors (a FLUX transformer, float8_e4m3fn)" in str(error.value)
    assert "flux_nf4.safetensors (a FLUX transformer, packed by bitsandbytes)" in str(error.value)
    named = str(error.value).rsplit(" ", 1)[1]
    assert named == f"owner/name/flux_fp8.safetensors{revision}"
    assert not list(tmp_path.rglob("*.safetensors"))
    assert os.path.basename(fetch(named)) == "flux_fp8.safetensors"


def test_packed_by_others_is_refused_before_it_is_downloaded(hub, fetch, tmp_path):
    other = save(
        {
            FLUX.marker: torch.zeros(8, dtype=torch.uint8),
            "double_blocks.0.img_attn.qkv.weight_scale": torch.zeros(1, dtype=FP8),
        }
    )
    hub.add("owner/name", {"flux_nvfp4.safetensors": other})
    for hub_repo in ("owner/name", "owner/name/flux_nvfp4.safetensors"):
        with pytest.raises(HubError, match=r"flux_nvfp4.safetensors \(a FLUX transformer, uint8\)"):
            fetch(hub_repo)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("prefix", FLUX.prefixes[:2])
def test_a_model_that_only_has_flux_names_too_is_refused_before_it_is_downloaded(hub, fetch, tmp_path, prefix):
    chroma = {prefix + name: torch.zeros(8) for name in (FLUX.marker, "distilled_guidance_layer.in_proj.weight")}
    hub.add("owner/name", {"chroma.safetensors": save(chroma | {IN_T5: torch.zeros(8)})})
    with pytest.raises(HubError, match=r"chroma.safetensors \(a Chroma transformer\)"):
        fetch("owner/name")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert os.path.basename(fetch("owner/name", T5)) == "chroma.safetensors"


def test_a_named_file_goes_before_the_search(hub, fetch):
    hub.add("owner/name", SIXTEEN_BIT_FILE | NF4_FILE | {"old/v1/flux.safetensors": nf4(FLUX.marker)})
    path = fetch("owner/name/old/v1/flux.safetensors")
    assert path.endswith(os.path.join("old", "v1", "flux.safetensors"))
    assert os.path.basename(fetch("owner/name/flux_nf4.safetensors")) == "flux_nf4.safetensors"
    assert fetch("owner/name/old/v1/flux.safetensors", endpoint=NOWHERE) == path


def test_a_named_folder_is_looked_through_instead_of_the_root(hub, fetch):
    inner = {f"nf4/{name}": data for name, data in PACKED_FOLDER.items()}
    files = {"fp8/flux.safetensors": file_of(FLUX.marker, FP8), "fp8/ae.safetensors": file_of("decoder.up.0.x")}
    hub.add("owner/name", SIXTEEN_BIT_FILE | inner | files)
    for path, end in {
        "nf4": ["nf4", "transformer"],
        "nf4/transformer": ["nf4", "transformer"],
        "fp8": ["fp8", "flux.safetensors"],
    }.items():
        found = fetch(f"owner/name/{path}")
        assert found.split(os.sep)[-2:] == end
        assert fetch(f"owner/name/{path}", endpoint=NOWHERE) == found


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.safetensors", "has no file none.safetensors"),
        ("none", "has no .safetensors file and no folder none"),
        ("flux.ckpt", "has no .safetensors file and no folder flux.ckpt"),
        ("ae.safetensors", r"no FLUX transformer that can be loaded in ae.safetensors \(a VAE\)"),
        ("a-00001-of-00002.safetensors", "one part of several"),
        ("vae", "vae/config.json is that of 'AutoencoderKL'"),
    ],
)
def test_a_path_to_nothing_of_the_kind_is_refused_and_nothing_is_downloaded(hub, fetch, tmp_path, path, message):
    files = {"ae.safetensors": file_of("decoder.up.0.x"), "flux.ckpt": b"PK", "a-00001-of-00002.safetensors": b""}
    vae = folder_of({"_class_name": "AutoencoderKL"}, WEIGHTS, path="vae")
    hub.add("owner/name", files | vae | SIXTEEN_BIT_FILE)
    with pytest.raises(HubError, match=f"^owner/name/{path}: .*{message}"):
        fetch(f"owner/name/{path}")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_kind_without_a_folder_rule_is_found_as_a_file(chosen):
    assert chosen({"clip_l.safetensors": file_of(CLIP_L.marker)}, CLIP_L) == "clip_l.safetensors"


@pytest.mark.parametrize("header", [b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b"[]", b"{", b'{"__metadata__": 3}'])
def test_a_header_that_makes_no_sense_does_not_hinder_the_choice(chosen, header):
    broken = len(header).to_bytes(8, "little") + header
    assert chosen({"a.safetensors": broken} | SIXTEEN_BIT_FILE) == "flux.safetensors"
