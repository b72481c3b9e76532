"""What lies beside a packed weight: its description in JSON, its statistics, and what is missing or too much."""

from __future__ import annotations

import json
import struct

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

STATE = ".quant_state.bitsandbytes__nf4"
PACKED = {
    "flux nf4": "double_blocks.0.img_attn.qkv.weight",
    "flux nested nf4": "double_blocks.0.img_attn.qkv.weight",
    "t5 nf4": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "diffusers nf4": "transformer_blocks.0.attn.to_k.weight",
}
REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=100)
FIELDS = ("quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset")
MISSING = "missing"
# as JSON texts, for json.dumps would not write all of them
VALUES = [
    MISSING, "null", "true", "false", "0", "1", "-1", "64.0", "1e999", "-1e999", "1e300", "NaN", "Infinity",
    "9" * 400, '""', '"x"', '"nf4\\u0000"', '"fp4"', '"float33"', "[]", "[0]", "[-64, 64]", "[64, -64]", "[64]",
    "[64, 64, 1]", "[[64], [64]]", "[true, 64]", "[64.0, 64]", "[9223372036854775807, 2]", "[1048576, 1048576]",
    "{}", '{"a": {"b": []}}', "[" * 500 + "]" * 500, '["64", "64"]', '"\\ud800"',
]  # fmt: skip


def text_of(form) -> bytes:
    return form.file.content(PACKED[form.name] + STATE)


def with_description(form, text: bytes):
    return form.file.with_content(PACKED[form.name] + STATE, text)


@pytest.mark.parametrize("form", ["flux nf4", "flux nested nf4"])
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_description_is_needed_and_checked(forms, form, field, tmp_path):
    form = forms[form]
    state = json.loads(text_of(form))
    for value in VALUES:
        rest = {name: json.dumps(other) for name, other in state.items() if name != field}
        if value != MISSING:
            rest[field] = value
        text = "{" + ", ".join(f'"{name}": {other}' for name, other in rest.items()) + "}"
        path = with_description(form, text.encode()).write(tmp_path)
        unused = field.startswith("nested") and field not in state and value == MISSING
        harmless = unused or (field in ("nested_blocksize", "nested_dtype") and field not in state)
        finite_offset = field == "nested_offset" and field in state and value in ("0", "1", "-1", "64.0")
        try:
            outcome = form.outcome(path, PACKED[form.name])
        except Exception as error:
            pytest.fail(f"{field}: {value[:50]}: {type(error).__name__}: {str(error)[:500]}")
        assert outcome == ("loaded" if harmless or finite_offset else "refused"), f"{field}: {value[:50]}"


def test_a_text_that_is_no_description_is_refused_by_its_name(forms, tmp_path):
    form = forms["flux nf4"]
    good = text_of(form)
    texts = {
        "empty": b"",
        "a trailing brace": good + b"}",
        "a second object": good + good,
        "cut short": good[:-1],
        "no UTF-8": good.replace(b"nf4", b"\xff\xfe4"),
        "a list": b"[" + good + b"]",
        "a number": b"1",
        "null": b"null",
        "deep nesting": b"[" * 2000 + b"]" * 2000,
        "a megabyte": good[:-1] + b', "more": "' + b"x" * 2**20 + b'"}',
        "zeros": bytes(len(good)),
    }
    for what, text in texts.items():
        path = with_description(form, text).write(tmp_path)
        assert form.outcome(path, PACKED[form.name] + STATE) == "refused", what
    # JSON may end in white space
    assert form.outcome(with_description(form, good + b"  \n").write(tmp_path)) == "loaded"


@REPRODUCIBLE
@given(
    state=st.dictionaries(
        st.sampled_from(FIELDS),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([192, 64]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=6,
        ),
    )
)  # fmt: skip
def test_any_description_is_refused_by_name_or_read_as_what_it_means(forms, tmp_path_factory, state):
    form = forms["flux nested nf4"]
    text = json.dumps(json.loads(text_of(form)) | state).encode()
    form.outcome(with_description(form, text).write(tmp_path_factory.getbasetemp()), PACKED[form.name])


@pytest.mark.parametrize(
    "form", ["flux nf4", "flux nested nf4", "flux int8", "flux scaled fp8", "t5 nf4", "diffusers nf4"]
)
def test_each_tensor_is_needed_or_means_nothing(forms, form, tmp_path):
    form = forms[form]
    for name in form.tensors:
        # what is missed is named, or the weight that it belongs to
        weight = name.partition(".quant_state")[0]
        for statistic in (".nested_absmax", ".nested_quant_map", ".absmax", ".quant_map", ".SCB", ".weight_format"):
            weight = weight.removesuffix(statistic)
        blamed = [name, weight, f"{weight}.weight"]
        outcome = form.outcome(form.file.with_tensors({name: None}).write(tmp_path), *blamed)
        unscaled = name.endswith((".weight_format", "scale_weight"))
        # row-major is what a missing format means; a missing fp8 scale means 1, as in ComfyUI
        assert outcome == "refused" or unscaled, name


def test_an_unrelated_tensor_more_changes_nothing(forms, tmp_path):
    for form in forms.values():
        more = {"unrelated": ("F32", [2], struct.pack("<2f", 1, 2)), "nowhere.absmax": ("U16", [1], b"ab")}
        assert form.outcome(form.file.with_tensors(more).write(tmp_path)) == "loaded", form.name


def test_a_statistic_more_that_contradicts_its_weight_is_refused_by_its_name(forms, tmp_path):
    nf4, one = forms["flux nf4"], struct.pack("<f", 1)
    weight, bias = PACKED["flux nf4"], "double_blocks.0.img_attn.qkv.bias"
    plain = "single_blocks.0.linear2"
    for name, entry in {
        f"{weight}.nested_absmax": ("F32", [1], one),
        f"{weight}.quant_state.bitsandbytes__fp4": ("U8", [2], b"{}"),
        f"{bias}{STATE}": ("U8", [2], b"{}"),
        f"nowhere{STATE}": ("U8", [2], b"{}"),
        f"{plain}.weight.absmax": ("F32", [1], one),
        f"{plain}.SCB": ("F32", [1], one),
        f"{plain}.scale_weight": ("F32", [], one),
    }.items():
        path = nf4.file.with_tensors({name: entry}).write(tmp_path)
        stem = name.partition(".nested")[0].partition(".quant_state")[0]
        assert nf4.outcome(path, stem) == "refused", name
        (tmp_path / nf4.file.name).unlink()


def floats(form, name: str, value: float) -> object:
    count = len(form.file.content(name)) // 4
    return form.file.with_content(name, struct.pack(f"<{count}f", *[value] * count))


def statistics(form):
    """The float32 statistics of a form's packed weights, but for code tables."""
    endings = (".absmax", ".SCB", "scale_weight")
    return [n for n in form.tensors if n.endswith(endings) and form.file.header[n]["dtype"] == "F32"] + [
        n for n in form.tensors if n.endswith(".nested_absmax")
    ]


@pytest.mark.parametrize("form", ["flux nf4", "flux nested nf4", "flux int8", "flux scaled fp8", "diffusers nf4"])
def test_statistics_that_make_weights_of_no_number_are_refused_by_their_name(forms, form, tmp_path):
    form = forms[form]
    assert statistics(form)
    for name in statistics(form):
        for value in (float("nan"), float("inf"), float("-inf"), 3.4e38):
            assert form.outcome(floats(form, name, value).write(tmp_path), name) == "refused", f"{name} {value}"
        # any other number is one that a weight may have
        for value in (0.0, 0.5, 100.0):
            assert form.outcome(floats(form, name, value).write(tmp_path)) == "loaded", f"{name} {value}"


def test_a_single_value_of_no_number_among_others_is_found(forms, tmp_path):
    form = forms["flux nf4"]
    name = PACKED["flux nf4"] + ".absmax"
    content = form.file.content(name)
    changed = form.file.with_content(name, content[:-4] + struct.pack("<f", float("nan")))
    assert form.outcome(changed.write(tmp_path), name) == "refused"


@pytest.mark.parametrize("form", ["flux int8", "flux scaled fp8"])
def test_a_negative_scale_is_refused_because_no_writer_makes_one(forms, form, tmp_path):
    form = forms[form]
    for name in statistics(form):
        assert form.outcome(floats(form, name, -1.0).write(tmp_path), name) == "refused", name


def test_a_negative_absmax_is_read_as_bitsandbytes_reads_it(forms, tmp_path):
    # bitsandbytes' own nested statistics expand to some: a block of zeros beside a very large one
    weight = torch.full((64, 64), 0.3)
    weight[0], weight[1], weight[2:20] = 0, 3, 1
    _, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    assert (bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset).min() < 0
    form = forms["flux nf4"]
    assert form.outcome(floats(form, PACKED["flux nf4"] + ".absmax", -0.01).write(tmp_path)) == "loaded"


@pytest.mark.parametrize("form", PACKED)
def test_another_code_table_is_refused_and_named_with_its_weight(forms, form, tmp_path):
    form = forms[form]
    name = PACKED[form.name] + ".quant_map"
    table = list(struct.unpack("<16f", form.file.content(name)))
    others = {
        "reversed": table[::-1],
        "fp4": bnb.get_4bit_type("fp4", device="cpu").tolist(),
        "zeros": [0.0] * 16,
        "one value": [*table[:7], 0.01, *table[8:]],
        "NaN": [float("nan")] * 16,
        "infinite": [float("inf")] * 16,
    }
    for what, values in others.items():
        path = form.file.with_content(name, struct.pack("<16f", *values)).write(tmp_path)
        assert form.outcome(path, PACKED[form.name]) == "refused", what
