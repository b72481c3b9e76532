"""Files that are damaged as a whole, were written to do harm, or are no files."""

from __future__ import annotations

import gc
import json
import os
import struct
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError, ConfigError
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=150)
NAMES = st.sampled_from(
    [
        "double_blocks.0.img_attn.qkv.weight",
        "double_blocks.99999999999999999999.img_attn.qkv.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "shared.weight",
        "text_model.encoder.layers.0.mlp.fc1.weight",
        "text_model.embeddings.position_embedding.weight",
        "img_in.weight",
        "img_in.weight.quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__nf4",
        "__metadata__",
    ]
) | st.text(max_size=8)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SIZES = st.lists(st.sampled_from([0, 1, 16, 64, 2**31, 2**63, -1]), max_size=3)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F8_E4M3", "I8", "F4", "C64", "?"]),
        "shape": SIZES,
        "data_offsets": st.tuples(*[st.sampled_from([0, 16, 64, 2**63])] * 2),
    }
)


def refusals(path) -> int:
    """How many of the ways to load ``path`` refuse it. Anything but a refusal or a model is an error here."""
    refused = 0
    for source in (flux_source, t5_source, clip_l_source):
        try:
            load(source(open_checkpoint(path)))
        except (CheckpointError, ConfigError) as error:
            refused += 1
            assert str(error)
    return refused


@pytest.mark.parametrize("form", ["flux nested nf4", "diffusers nf4"])
def test_a_file_cut_short_anywhere_is_refused(forms, form, tmp_path):
    form = forms[form]
    whole = form.file.bytes()
    for kept in [*range(0, 24), *range(24, len(whole), len(whole) // 60), len(whole) - 1]:
        assert form.outcome(form.file.write(tmp_path, whole[:kept])) == "refused", f"{kept} of {len(whole)} bytes"
    assert form.outcome(form.file.write(tmp_path, whole + b"\0")) == "refused", "a byte more"


def test_a_header_of_another_length_than_it_says_is_refused(forms, tmp_path):
    form = forms["flux nf4"]
    whole = form.file.bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for said in (0, 1, length - 1, length + 1, length + 8, len(whole), 2**32, 2**63, 2**64 - 1):
        path = form.file.write(tmp_path, struct.pack("<Q", said) + whole[8:])
        assert form.outcome(path) == "refused", f"{said} instead of {length}"


def test_a_name_that_a_header_gives_twice_is_refused(forms, tmp_path):
    form = forms["flux nf4"]
    text = json.dumps(form.file.header)
    entry = json.dumps(form.file.header["img_in.bias"])
    path = form.file.write(tmp_path, form.file.bytes((text[:-1] + f', "img_in.bias": {entry}}}').encode()))
    assert form.outcome(path, "img_in.bias") == "refused"


def test_a_header_whose_text_is_padded_reads_as_before(forms, tmp_path):
    form = forms["flux nested nf4"]
    text = json.dumps(form.file.header).encode()
    for spaces in range(1, 9):
        assert form.outcome(form.file.write(tmp_path, form.file.bytes(text + b" " * spaces))) == "loaded", spaces


@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.4000000000.img_attn.qkv.weight",
        "double_blocks." + "9" * 5000 + ".img_attn.qkv.weight",
        "single_blocks.2.linear1.weight",
    ],
    ids=["billions", "5000 digits", "a gap"],
)
def test_a_block_number_that_leaves_others_out_is_refused_at_once(forms, name, tmp_path):
    form = forms["flux nf4"]
    start = time.monotonic()
    path = form.file.with_tensors({name: ("U8", [0], b"")}).write(tmp_path)
    assert form.outcome(path, "double_blocks.1.", "single_blocks.1.") == "refused"
    assert time.monotonic() - start < 5


@REPRODUCIBLE
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    assert refusals(path) == 3


@REPRODUCIBLE
@given(header=st.dictionaries(NAMES, ENTRIES | JSON, max_size=6) | JSON, data=st.binary(max_size=64))
def test_any_header_is_refused(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert refusals(path) == 3


ABSURD = {
    "a shape of terabytes": {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}},
    "no numbers in a huge shape": {"img_in.weight": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}},
    "a shape of a million sides": {"a": {"dtype": "F32", "shape": [0] * 10**6, "data_offsets": [0, 0]}},
    "no entries but lists": {"a": [[]] * 10**6},
    "many tensors": {f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)},
}


def test_absurd_headers_are_refused_in_little_memory_and_time(tmp_path):
    """Each alone in the program's memory, beside what it takes by itself."""
    paths = []
    for number, header in enumerate(ABSURD.values()):
        text = json.dumps(header).replace(" ", "").encode()
        paths.append(tmp_path / f"{number}.safetensors")
        paths[-1].write_bytes(struct.pack("<Q", len(text)) + text)
    # a header of 100 MB, which safetensors would read, in a sparse file
    paths.append(tmp_path / "long.safetensors")
    with open(paths[-1], "wb") as file:
        file.write(struct.pack("<Q", 100 * 10**6) + b"{")
        file.truncate(8 + 100 * 10**6)
    for name, text in (("lists", b'{"a":[' + b"[]," * 600_000 + b"[]]}"), ("long", b" " * (70 * 2**20))):
        paths.append(tmp_path / name)
        paths[-1].mkdir()
        (paths[-1] / "config.json").write_bytes(text)
    program = textwrap.dedent(
        """
        import resource, sys, time
        from quantflux.quant_core.checkpoint import open_checkpoint
        from quantflux.quant_core.errors import CheckpointError
        from quantflux.quant_core.source import flux_source
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for path in sys.argv[1:]:
            before, start = peak(), time.process_time()
            try:
                flux_source(open_checkpoint(path))
                sys.exit(f"{path} was accepted")
            except CheckpointError as error:
                sys.stdout.write(f"{peak() - before} {time.process_time() - start} {len(str(error))} {error}\\n")
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        grown, seconds, length, _ = line.split(" ", 3)
        content = path / "config.json" if path.is_dir() else path
        allowed = 64 * 2**20 + min(content.stat().st_size, 4 * 2**20)
        assert int(grown) < allowed, f"{line[:200]}: more than {allowed} bytes"
        assert float(seconds) < 5 and int(length) < 2000, line[:200]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_never_waited_for(tmp_path):
    paths = []
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "model_index.json"):
        folder = tmp_path / name
        folder.mkdir()
        if name != "config.json":
            (folder / "config.json").write_text("{}")
        os.mkfifo(folder / name)
        paths += [folder, folder / name]
    program = textwrap.dedent(
        """
        import sys
        from quantflux.quant_core.checkpoint import open_checkpoint
        from quantflux.quant_core.errors import CheckpointError
        for path in sys.argv[1:]:
            try:
                open_checkpoint(path, "transformer")
            except CheckpointError:
                continue
            sys.exit(f"{path} was accepted")
        """
    )
    # another program: an opened pipe would hold up this one for ever
    subprocess.run([sys.executable, "-c", program, *map(str, paths)], timeout=60, check=True)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "a\0b.safetensors", "\ud800.safetensors", ""])
def test_a_device_and_a_name_that_no_file_can_have_are_refused(path):
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
@pytest.mark.parametrize("form", ["flux nf4", "flux int8"])
def test_nothing_of_a_file_that_is_refused_while_it_is_read_stays(forms, form, tmp_path):
    form = forms[form]
    # the last statistic that is read; what comes before it has been loaded by then
    name = [n for n in form.tensors if n.endswith((".absmax", ".SCB")) and "qkv" in n][-1]
    content = form.file.content(name)
    path = form.file.with_content(name, struct.pack("<f", float("nan")) * (len(content) // 4)).write(tmp_path)
    gc.collect()
    for _ in range(2):
        with pytest.raises(CheckpointError) as error:
            form.load(path)
        assert name in str(error.value)
    del error
    gc.collect()
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()
    assert str(path) not in {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}


def test_a_tensor_that_was_changed_after_its_header_was_read_is_refused(forms, tmp_path):
    form = forms["flux nf4"]
    source = flux_source(open_checkpoint(form.file.write(tmp_path)))
    form.file.with_entry("img_in.bias", dtype="F16").write(tmp_path)
    with pytest.raises(CheckpointError, match="img_in.bias"):
        load(source)
