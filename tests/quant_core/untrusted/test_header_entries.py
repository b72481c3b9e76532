"""Every entry of every tensor in a packed file's header, changed in every way that JSON allows."""

from __future__ import annotations

import pytest

FORMS = ["flux nf4", "flux nested nf4", "flux int8", "flux scaled fp8", "t5 nf4", "diffusers nf4"]
SAME_SIZE = {
    "U8": ("I8", "BOOL", "F8_E4M3", "F8_E5M2"),
    "I8": ("U8", "BOOL", "F8_E4M3", "F8_E5M2"),
    "F8_E4M3": ("F8_E5M2", "U8", "I8", "BOOL"),
    "BF16": ("F16", "I16", "U16"),
    "F16": ("BF16", "I16", "U16"),
    "F32": ("I32", "U32"),
}
OTHER_SIZE = {"U8": "F32", "I8": "I64", "F8_E4M3": "BF16", "BF16": "U8", "F16": "F32", "F32": "F64"}


@pytest.mark.parametrize("form", FORMS)
def test_an_unchanged_file_means_what_bitsandbytes_reads_in_it(forms, form, tmp_path):
    form = forms[form]
    assert form.outcome(form.file.write(tmp_path)) == "loaded"


@pytest.mark.parametrize("form", FORMS)
def test_another_dtype_is_refused_or_read_as_what_it_then_means(forms, form, tmp_path):
    each(forms[form], tmp_path, dtypes, names_tensor=False)


@pytest.mark.parametrize("form", FORMS)
def test_a_dtype_that_does_not_fill_the_bytes_is_refused_by_the_tensors_name(forms, form, tmp_path):
    def changes(entry):
        return [{"dtype": OTHER_SIZE[entry["dtype"]]}, {"dtype": "F7"}, {"dtype": ""}, {"dtype": None}, {"dtype": 3}]

    assert "loaded" not in each(forms[form], tmp_path, changes)


@pytest.mark.parametrize("form", FORMS)
def test_a_shape_that_does_not_fill_the_bytes_is_refused_by_the_tensors_name(forms, form, tmp_path):
    def changes(entry):
        rows, *rest = entry["shape"] or [1]
        shapes = [
            [rows + 1, *rest],
            [0, *rest],
            [-rows, *rest],
            [2**40, *rest],
            [2**63, 2],
            [2**64 - 1, *rest],
            [2**200],
            [float(rows), *rest],
            [str(rows), *rest],
            [None],
            None,
            rows,
            {},
        ]
        return [{"shape": shape} for shape in shapes]

    assert "loaded" not in each(forms[form], tmp_path, changes)


@pytest.mark.parametrize("form", FORMS)
def test_a_shape_of_as_many_numbers_is_refused_or_means_the_same(forms, form, tmp_path):
    def changes(entry):
        shape = entry["shape"]
        count = 1
        for side in shape:
            count *= side
        others = [shape[::-1], [count], [1, count], [count, 1], [count, 1, 1], [*shape, 1]]
        return [{"shape": other} for other in others if other != shape]

    each(forms[form], tmp_path, changes, names_tensor=False)


@pytest.mark.parametrize("form", FORMS)
def test_offsets_that_shift_overlap_or_leave_the_file_are_refused(forms, form, tmp_path):
    def changes(entry):
        start, stop = entry["data_offsets"]
        offsets = [
            [start + 1, stop + 1],
            [start, stop + 1],
            [start, stop - 1],
            [stop, start],
            [start + 2**40, stop + 2**40],
            [-1, stop],
            [2**64 - 1, 2**64],
            [start],
            [start, stop, stop],
            [str(start), stop],
            None,
        ]
        return [{"data_offsets": other} for other in offsets]

    assert "loaded" not in each(forms[form], tmp_path, changes, names_tensor=False)


def dtypes(entry):
    return [{"dtype": other} for other in SAME_SIZE[entry["dtype"]]]


def each(form, folder, changes, names_tensor=True):
    """Outcomes of every change to the entry of every tensor of the form's modules."""
    outcomes, faults = [], []
    for name in form.tensors:
        for change in changes(form.file.header[name]):
            path = form.file.with_entry(name, **change).write(folder)
            try:
                outcomes.append(form.outcome(path, *([name] if names_tensor else [])))
            except Exception as error:
                faults.append(f"{name} with {change}: {type(error).__name__}: {str(error)[:300]}")
    assert not faults, "\n".join(faults[:20]) + f"\n{len(faults)} in all"
    return outcomes
