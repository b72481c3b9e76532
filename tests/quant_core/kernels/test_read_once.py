"""What Triton makes of a kernel is remembered for the arguments that it depends on, and while graphs are compiled."""

import pytest
import torch
from registered import registered_module

FIRST, SECOND = object(), object()  # kernels


@pytest.fixture
def translated(monkeypatch) -> list:
    """Each translation that torch asks Triton for, in order."""
    calls = []

    def generate_ttir(kernel, kwargs, tma_descriptor_metadata):
        calls.append((kernel, dict(kwargs)))
        return f"module {len(calls)}", list(kwargs)

    monkeypatch.setattr(module().wrap, "generate_ttir", generate_ttir)
    return calls


def module():
    return registered_module("kernels.read_once")


def test_equal_launches_are_translated_once(translated):
    x, y = (torch.zeros(size, dtype=torch.bfloat16) for size in (4, 8))
    with module().kernels_read_once():
        ask = module().wrap.generate_ttir
        results = [ask(FIRST, {"x": tensor, "columns": 3072, "bias": None}, {}) for tensor in (x, y, x)]
    assert results == [("module 1", ["x", "columns", "bias"])] * 3
    assert len(translated) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(1, dtype=torch.int8)},
        {"columns": 15360},
        {"columns": 1.0},
        {"ADD": True},
        {"bias": torch.zeros(1)},
    ],
)
def test_what_the_code_depends_on_is_told_apart(translated, other):
    launch = {"x": torch.zeros(1), "columns": 1, "ADD": 1, "bias": None}
    with module().kernels_read_once():
        ask = module().wrap.generate_ttir
        assert ask(FIRST, launch, {})[0] != ask(FIRST, launch | other, {})[0]
        assert ask(SECOND, launch, {})[0] == "module 3"


def test_what_has_no_key_is_translated_each_time(translated):
    with module().kernels_read_once():
        ask = module().wrap.generate_ttir
        for _ in range(2):
            ask(FIRST, {"x": torch.zeros(1)}, {"x": "a descriptor"})
            ask(FIRST, {"sizes": [1, 2]}, {})
    assert len(translated) == 4


def test_nothing_is_remembered_longer_nor_left_behind(translated):
    wrap, original = module().wrap, module().wrap.generate_ttir
    for _ in range(2):
        with pytest.raises(KeyError), module().kernels_read_once():
            wrap.generate_ttir(FIRST, {"columns": 1}, {})
            raise KeyError
        assert wrap.generate_ttir is original
    assert len(translated) == 2


def test_another_torch_is_left_as_it_is(monkeypatch):
    wrap = module().wrap
    monkeypatch.delattr(wrap, "generate_ttir")
    with module().kernels_read_once():
        assert not hasattr(wrap, "generate_ttir")
